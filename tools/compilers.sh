#!/usr/bin/env bash
# Build the package for all instruction sets with compilers of Debian, and run `cdropout selftest`.
#
#     tools/compilers.sh                    the compilers listed at the end of this file
#     tools/compilers.sh gcc-12 clang-22    these compilers; missing ones are installed
#     tools/compilers.sh sid:gcc-16         a compiler of another release of Debian, in its own root directory (as root)
#
# The script needs Debian. Downloads are kept in build/compilers.
set -euo pipefail
cd "$(dirname "$0")/.."

work=$PWD/build/compilers
python=$work/env/bin/python
version=3.13 # version of Python in the other releases of Debian

install_compiler() {
  command -v "$1" >/dev/null && return
  apt-get -qq update
  apt-get -qq install -y --no-install-recommends "$1" >/dev/null
}

# build PYTHON COMPILER FOLDER: build the package in FOLDER and run `cdropout selftest`.
build() {
  rm -rf "$3" && mkdir -p "$3"
  CC=$2 LDSHARED="$2 -shared" CFLAGS=-w "$1" -W ignore setup.py -q egg_info --egg-base "$3" build --build-base "$3" --build-lib "$3/lib" \
    install_egg_info --install-dir "$3/lib" >/dev/null 2>"$3.log" || { cat "$3.log" && return 1; }
  PYTHONPATH=$3/lib${PYTHONPATH:+:$PYTHONPATH} "$1" -P -m cdropout info | grep "^built"
  PYTHONPATH=$3/lib${PYTHONPATH:+:$PYTHONPATH} "$1" -P -m cdropout selftest
}

# unpack_root RELEASE COMPILER: unpack COMPILER and the other requirements of a build into a root directory for chroot.
unpack_root() {
  local root=$work/$1-$2 package
  local apt=$root.apt
  mkdir -p "$apt"/{lists,cache/archives}/partial "$apt"/etc/{sources.list.d,apt.conf.d,preferences.d}
  : >"$apt/status" # an empty database of installed packages
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian $1 main" >"$apt/etc/sources.list"
  local options=(-qq -o "Dir::Etc=$apt/etc" -o "Dir::State=$apt" -o "Dir::State::status=$apt/status" -o "Dir::Cache=$apt/cache")
  apt-get "${options[@]}" update
  apt-get "${options[@]}" install -y --no-install-recommends --download-only "$2" libc6-dev bash dash coreutils grep "python$version" "libpython$version-dev"
  mkdir -p "$root"/usr/{bin,lib,lib64,sbin} # /bin, /lib, /lib64 and /sbin are links to these directories
  for package in bin lib lib64 sbin; do ln -sfn "usr/$package" "$root/$package"; done
  for package in "$apt"/cache/archives/*.deb; do dpkg-deb -x "$package" "$root"; done
  "$python" -m pip install -q --only-binary :all: --python-version "$version" --target "$root/packages" setuptools cython 'numpy>=2.0'
}

build_in_root() {
  local root=$work/$1-$2
  [ -e "$root/packages" ] || unpack_root "$1" "$2"
  mkdir -p "$root"/{dev,tmp,src}
  [ -e "$root/dev/null" ] || mknod -m 666 "$root/dev/null" c 1 3
  cp -r setup.py pyproject.toml README.md LICENSE MANIFEST.in cdropout "$root/src"
  find "$root/src/cdropout" -name "*.so" -delete
  {
    declare -f build
    echo "set -e; cd /src; build python$version $2 /src/build.$2"
  } >"$root/src/run"
  PYTHONPATH=/packages chroot "$root" bash /src/run
}

run() {
  echo "-- $1"
  case $1 in
    *:*) build_in_root "${1%%:*}" "${1#*:}" ;;
    *)
      install_compiler "$1"
      build "$python" "$1" "$work/$1"
      ;;
  esac
}

[ $# -gt 0 ] || set -- gcc-12 clang-14 clang-15 clang-16 clang-19 clang-22 sid:gcc-16
mkdir -p "$work"
[ -e "$python" ] || python3 -m venv "$work/env"
"$python" -m pip install -q 'setuptools>=77' 'cython>=3.1' 'numpy>=2.0'
for name; do run "$name"; done
