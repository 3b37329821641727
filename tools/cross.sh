#!/usr/bin/env bash
# The modules for machines that are not here: compiled and linked by Zig's Clang and audited, but not run. Only those for
# linux-x86_64 are run: they prove that the probe and the kernels of this compiler are right.
#
#     tools/cross.sh                   all of them
#     tools/cross.sh linux-aarch64     one of those at the end of this file
#
# All comes from PyPI. NumPy's headers are those of its wheel for the machine. CPython's are those of the Python at hand,
# and only the sizes of C's types on Windows are written here. build/cross keeps what was downloaded for the next time.
set -euo pipefail
shopt -s nullglob
cd "$(dirname "$0")/.."

work=$PWD/build/cross
python=$work/env/bin/python
headers=$work/include # CPython's

install_tools() {
  [ -e "$python" ] || python3 -m venv "$work/env"
  "$python" -m pip install -q 'setuptools>=77' 'cython>=3.1' 'numpy>=2.0' ziglang abi3audit
}

copy_headers() { # $1: where to
  rm -rf "$1" && mkdir -p "$(dirname "$1")"
  cp -r "$("$python" -c "import sysconfig; print(sysconfig.get_path('include'))")" "$1"
  cp "$("$python" -c "import sysconfig; print(sysconfig.get_config_h_filename())")" "$1/pyconfig.h"
}

# C's types on 64-bit Windows, and an import library for the stable ABI, which python3.dll offers.
describe_windows() {
  copy_headers "$work/windows/include"
  cat >"$work/windows/include/pyconfig.h" <<'END'
#define MS_WINDOWS
#define MS_WIN64
#define HAVE_DECLSPEC_DLL
#define Py_ENABLE_SHARED
#define WITH_DOC_STRINGS 1
#define SIZEOF_SHORT 2
#define SIZEOF_INT 4
#define SIZEOF_LONG 4
#define SIZEOF_LONG_LONG 8
#define SIZEOF_VOID_P 8
#define SIZEOF_SIZE_T 8
#define SIZEOF_TIME_T 8
#define SIZEOF_WCHAR_T 2
END
  "$python" -c "
import abi3info
print('LIBRARY python3.dll', 'EXPORTS', *sorted(symbol.name for symbol in abi3info.FUNCTIONS), sep='\n')
print(*sorted(f'{symbol.name} DATA' for symbol in abi3info.DATAS), sep='\n')" >"$work/windows/python3.def"
  "$python" -m ziglang dlltool -m i386:x86-64 -d "$work/windows/python3.def" -l "$work/windows/libpython3.a"
}

# build PLATFORM ZIG_TARGET NUMPY_PLATFORM [LINKER_FLAG...]; PLATFORM is Python's own name for it
build() {
  local platform=$1 compiler="$python -m ziglang cc -target $2" numpy=$3 folder=$work/$1 module modules
  shift 3
  [ -e "$folder/numpy" ] || "$python" -m pip install -q --no-deps --only-binary :all: --platform "$numpy" --target "$folder" numpy
  rm -rf "$folder/build" && mkdir -p "$folder/build"
  CC=$compiler LDSHARED="$compiler -shared -s $*" _PYTHON_HOST_PLATFORM=$platform \
    CFLAGS="-Werror=implicit-function-declaration -I$headers -I$folder/numpy/_core/include" \
    "$python" -W ignore setup.py -q egg_info --egg-base "$folder/build" build --build-base "$folder/build" --build-lib "$folder/build/lib" \
    install_egg_info --install-dir "$folder/build/lib" >/dev/null
  if [[ $platform = win* ]]; then # setuptools names them for the system that it runs on
    for module in "$folder"/build/lib/cdropout/{_core,jax,tensorflow,torch}/*.so; do mv "$module" "${module%%.*}.pyd"; done
  fi
  modules=("$folder"/build/lib/cdropout/{_core,jax,tensorflow,torch}/*.{so,pyd})
  "$python" -m abi3audit --strict --assume-minimum-abi3 3.11 "${modules[@]}"
  echo "$platform: ${#modules[@]} modules"
}

# Run what was built: all sets, and the same ones as the system says that the CPU has.
check() {
  local lib=$work/$1/build/lib probed=baseline
  PYTHONPATH=$lib "$python" -P -m cdropout selftest
  ! grep -qw avx2 /proc/cpuinfo || probed="$probed, avx2"
  ! grep -qw avx512vl /proc/cpuinfo || probed="$probed, avx512"
  PYTHONPATH=$lib "$python" -P -m cdropout info | tee "$work/$1/info"
  grep -qx "built for: *baseline, avx2, avx512" "$work/$1/info"
  grep -qx "this CPU runs: *$probed" "$work/$1/info"
}

machine() {
  case $1 in
    linux-x86_64)
      build "$1" x86_64-linux-gnu.2.17 manylinux_2_28_x86_64
      check "$1"
      ;;
    linux-aarch64) build "$1" aarch64-linux-gnu.2.17 manylinux_2_28_aarch64 ;;
    musllinux_1_2_x86_64) build "$1" x86_64-linux-musl "$1" ;;
    macosx-11.0-arm64) build "$1" aarch64-macos.11.0 macosx_11_0_arm64 -undefined dynamic_lookup ;;
    macosx-10.15-x86_64) build "$1" x86_64-macos.10.15 macosx_10_15_x86_64 -undefined dynamic_lookup ;;
    win-amd64)
      describe_windows
      headers=$work/windows/include build "$1" x86_64-windows-gnu win_amd64 "-L$work/windows" -lpython3
      ;;
    *) echo "expected one of ${machines[*]}, but got $1" >&2 && exit 2 ;;
  esac
}

machines=(linux-x86_64 linux-aarch64 musllinux_1_2_x86_64 macosx-11.0-arm64 macosx-10.15-x86_64 win-amd64)
[ $# -gt 0 ] || set -- "${machines[@]}"
install_tools
copy_headers "$headers"
for name; do machine "$name"; done
