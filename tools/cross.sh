#!/usr/bin/env bash
# Compile and link the modules for other platforms with Zig's Clang, and audit them. Only the modules for linux-x86_64 are run,
# to test the detection of the CPU and the kernels that this compiler builds.
#
#     tools/cross.sh                   all platforms
#     tools/cross.sh linux-aarch64     one of the platforms listed at the end of this file
#
# All tools are installed from PyPI. The headers of NumPy are those of its wheel for the platform. The headers of CPython are
# those of the running Python; for Windows, this script replaces pyconfig.h. Downloads are kept in build/cross.
set -euo pipefail
shopt -s nullglob
cd "$(dirname "$0")/.."

work=$PWD/build/cross
python=$work/env/bin/python
headers=$work/include # headers of CPython

install_tools() {
  [ -e "$python" ] || python3 -m venv "$work/env"
  "$python" -m pip install -q 'setuptools>=77' 'cython>=3.1' 'numpy>=2.0' ziglang abi3audit
}

copy_headers() { # copy_headers FOLDER: copy the headers of CPython
  rm -rf "$1" && mkdir -p "$(dirname "$1")"
  cp -r "$("$python" -c "import sysconfig; print(sysconfig.get_path('include'))")" "$1"
  cp "$("$python" -c "import sysconfig; print(sysconfig.get_config_h_filename())")" "$1/pyconfig.h"
}

# Write pyconfig.h for 64-bit Windows, and an import library of python3.dll, which exports the stable ABI.
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

# build PLATFORM ZIG_TARGET NUMPY_PLATFORM [LINKER_FLAG...]: build and audit the modules. PLATFORM is Python's platform name.
build() {
  local platform=$1 compiler="$python -m ziglang cc -target $2" numpy=$3 folder=$work/$1 module modules
  shift 3
  [ -e "$folder/numpy" ] || "$python" -m pip install -q --no-deps --only-binary :all: --platform "$numpy" --target "$folder" numpy
  rm -rf "$folder/build" && mkdir -p "$folder/build"
  CC=$compiler LDSHARED="$compiler -shared -s $*" _PYTHON_HOST_PLATFORM=$platform \
    CFLAGS="-Werror=implicit-function-declaration -I$headers -I$folder/numpy/_core/include" \
    "$python" -W ignore setup.py -q egg_info --egg-base "$folder/build" build --build-base "$folder/build" --build-lib "$folder/build/lib" \
    install_egg_info --install-dir "$folder/build/lib" >/dev/null
  if [[ $platform = win* ]]; then # setuptools uses the suffix of the system on which it runs
    for module in "$folder"/build/lib/cdropout/{_core,jax,tensorflow,torch}/*.so; do mv "$module" "${module%%.*}.pyd"; done
  fi
  modules=("$folder"/build/lib/cdropout/{_core,jax,tensorflow,torch}/*.{so,pyd})
  "$python" -m abi3audit --strict --assume-minimum-abi3 3.11 "${modules[@]}"
  echo "$platform: ${#modules[@]} modules"
}

# Run the modules. All instruction sets must be built, and the detected sets must be those that /proc/cpuinfo lists.
check() {
  local lib=$work/$1/build/lib expected=baseline
  PYTHONPATH=$lib "$python" -P -m cdropout selftest
  ! grep -qw avx2 /proc/cpuinfo || expected="$expected, avx2"
  ! grep -qw avx512vl /proc/cpuinfo || expected="$expected, avx512"
  PYTHONPATH=$lib "$python" -P -m cdropout info | tee "$work/$1/info"
  grep -qx "built for: *baseline, avx2, avx512" "$work/$1/info"
  grep -qx "this CPU runs: *$expected" "$work/$1/info"
}

build_platform() {
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
    *) echo "expected one of ${platforms[*]}, but got $1" >&2 && exit 2 ;;
  esac
}

platforms=(linux-x86_64 linux-aarch64 musllinux_1_2_x86_64 macosx-11.0-arm64 macosx-10.15-x86_64 win-amd64)
[ $# -gt 0 ] || set -- "${platforms[@]}"
install_tools
copy_headers "$headers"
for name; do build_platform "$name"; done
