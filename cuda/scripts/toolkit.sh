#!/usr/bin/env bash
# Fetches a CUDA 13.0 compiler as Python wheels (about 105 MB, 210 MB unpacked) into a folder that serves as CUDA_HOME. It
# needs no GPU and no driver. A finished folder is left as it is.
#
#   cuda/scripts/toolkit.sh [FOLDER]      default: target/cuda; prints the folder
set -euo pipefail

here=$(cd "$(dirname "$0")/../.." && pwd)
folder=${1:-$here/target/cuda}
# No newer than 13.0: PTX of a later compiler is refused by drivers of that level.
wheels=(nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96
    nvidia-cuda-cccl==13.0.85)
mark="${wheels[*]}"
if [ "$(cat "$folder/.wheels" 2>/dev/null)" = "$mark" ]; then
    echo "$folder"
    exit 0
fi
mkdir -p "$(dirname "$folder")"
fresh=$(mktemp -d "$folder.XXXXXX")
trap 'rm -rf "$fresh"' EXIT
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 \
    --implementation py --abi none --platform manylinux2014_x86_64 --platform manylinux2010_x86_64 \
    --dest "$fresh/wheels" "${wheels[@]}"
python3 - "$fresh" <<'PYTHON'
import pathlib, sys, zipfile

fresh = pathlib.Path(sys.argv[1])
prefix = "nvidia/cu13/"
for wheel in sorted((fresh / "wheels").glob("*.whl")):
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            # The large library is for programs that embed the compiler; nvcc has its own.
            wanted = name.startswith(prefix) and not name.endswith(("/", "lib/libnvvm.so.4"))
            if not wanted:
                continue
            target = fresh / "home" / name[len(prefix):]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(name))
            if "/bin/" in name:
                target.chmod(0o755)
PYTHON
ln -s lib "$fresh/home/lib64"
echo "$mark" >"$fresh/home/.wheels"
rm -rf "$folder"
mv "$fresh/home" "$folder"
echo "$folder"
