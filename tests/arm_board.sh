#!/bin/sh
# An ARM board without ARM: Debian's aarch64 Python with numpy and onnxruntime in a folder, for qemu-user. A proof that the agent
# runs on ARM binaries; its times mean nothing. As root, with the Debian packages qemu-user-static and debootstrap; about a minute.
#
#     tests/arm_board.sh /tmp/arm_board && ARM_BOARD=/tmp/arm_board python -m pytest tests/test_remote.py -k arm_binaries
set -eu
board=$1
debootstrap --foreign --arch=arm64 --variant=minbase --include=python3 bookworm "$board"
for package in "$board"/var/cache/apt/archives/*.deb; do
    dpkg -x "$package" "$board"
done
python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.11 --platform manylinux_2_28_aarch64 \
    --platform manylinux_2_27_aarch64 --platform manylinux2014_aarch64 --dest "$board/wheels" numpy onnxruntime
for wheel in "$board"/wheels/*.whl; do
    python3 -m zipfile -e "$wheel" "$board/site"
done
# onnxruntime asks the kernel for the CPU's features and fails where it reads of an x86 CPU. Never written over a mounted /proc.
mkdir -p "$board/proc"
cat > "$board/proc/cpuinfo" <<'END'
processor	: 0
BogoMIPS	: 108.00
Features	: fp asimd evtstrm crc32 cpuid
CPU implementer	: 0x41
CPU architecture: 8
CPU variant	: 0x0
CPU part	: 0xd08
CPU revision	: 3
END
