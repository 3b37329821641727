#!/usr/bin/env bash
# Cross-compile the package for another architecture, and run it with a Python of that architecture under QEMU.
#
#     tools/emulate.sh aarch64          an architecture with NEON
#     tools/emulate.sh s390x            a big-endian architecture
#     tools/emulate.sh aarch64 TEST...  run these tests
#
# The script checks the recorded hashes and runs the tests of the kernels, memory layouts and 16-bit types. It needs Debian or
# a derivative, and installs QEMU and a cross compiler. Python and NumPy of the other architecture are unpacked to build/emulate
# and kept there.
set -euo pipefail
cd "$(dirname "$0")/.."

machine=${1:?"expected aarch64 or s390x"}
case $machine in
  aarch64) architecture=arm64 ;;
  s390x) architecture=s390x ;;
  *) echo "expected aarch64 or s390x, but got $machine" >&2 && exit 2 ;;
esac
target=$machine-linux-gnu
work=$PWD/build/emulate/$machine
root=$work/root
foreign=$root/usr/bin/python # a script that runs the Python of the other architecture under QEMU
native=$work/env/bin/python
modules=$work/modules

install_tools() {
  command -v "$target-g++" qemu-"$machine" >/dev/null && return
  apt-get -qq update
  apt-get -qq install -y qemu-user "g++-$target"
}

# Unpack Debian's packages for the other architecture. The package database of this system is not changed.
unpack_root() {
  mkdir -p "$work"/{lists,cache/archives}/partial "$root"
  : >"$work/status" # an empty database of installed packages
  local apt=(
    apt-get -qq -o "APT::Architecture=$architecture" -o "APT::Architectures=$architecture"
    -o "Dir::State=$work" -o "Dir::State::status=$work/status" -o "Dir::Cache=$work/cache"
  )
  "${apt[@]}" update
  "${apt[@]}" install -y --no-install-recommends --download-only python3 libpython3-dev \
    python3-numpy python3-pytest libstdc++6
  for package in "$work"/cache/archives/*.deb; do dpkg-deb -x "$package" "$root"; done
  rm -f "$root"/usr/include/python3.*/numpy # old headers; the headers of the native NumPy are used instead
}

# Write the script $foreign. It sets sys.executable to its own path, so that processes started by tests are emulated too.
# PYTHONPATH contains the checkout, because the package `tests` is in it. The checkout is last in PYTHONPATH, because its
# cdropout is not built.
write_foreign_python() {
  local libraries=/usr/lib/$target
  cat >"$foreign" <<END
#!/bin/sh
exec qemu-$machine -L "$root" -E LD_LIBRARY_PATH=$libraries/blas:$libraries/lapack -E PYTHONHOME="$root/usr" \\
  -E PYTHONPATH="$modules:$PWD" -0 "\$0" "$root/usr/bin/python3" "\$@"
END
  chmod +x "$foreign"
}

# cross_build FOLDER: run setup.py with the cross compiler. The headers of the foreign Python are found first.
cross_build() {
  local headers=$root/usr/include
  local flags="-I$(echo "$headers"/python3.*) -idirafter $headers"
  local library
  (
    cd "$1"
    export CC=$target-gcc CXX=$target-g++ LDSHARED="$target-gcc -shared" LDCXXSHARED="$target-g++ -shared"
    export CFLAGS=$flags CXXFLAGS=$flags
    export _PYTHON_HOST_PLATFORM=linux-$machine # the target platform
    "$native" -W ignore setup.py -q build --build-base "$work/build" --build-lib "$modules" \
      install_egg_info --install-dir "$modules"
  )
  for library in "$modules"/*/*.cpython-*.so; do # every Python accepts the suffix .so
    [ ! -e "$library" ] || mv "$library" "${library%%.*}.so"
  done
}

# There is no wheel of ml_dtypes for s390x. Release 0.5.1 is the last one that is built with setuptools.
build_ml_dtypes() {
  "$native" -m pip download -q --no-deps --no-binary :all: --no-build-isolation -d "$work" ml_dtypes==0.5.1
  tar -xzf "$work"/ml_dtypes-0.5.1.tar.gz -C "$work"
  cross_build "$work"/ml_dtypes-0.5.1
}

install_tools
[ -e "$foreign" ] || unpack_root
write_foreign_python
[ -e "$native" ] || python3 -m venv "$work/env"
"$native" -m pip install -q 'setuptools>=77' 'cython>=3.1' 'numpy>=2.0'
[ -e "$modules/ml_dtypes" ] || build_ml_dtypes
rm -rf "$work/build" "$modules"/cdropout*
cross_build .
"$foreign" -P -m cdropout selftest
[ $# -gt 1 ] || set -- "$machine" tests/core/test_kernels.py tests/core/test_view.py tests/core/test_select.py
"$foreign" -P -m pytest -q -p no:cacheprovider "${@:2}"
