# shellcheck shell=bash
# Shell functions that package programs and libraries of the build root.

triple=$(basename "$(dirname "$(ls -d /usr/lib/*-linux-gnu/libc.so.6)")")

# find_library SONAME: its file in the build root; fails where the root has none.
find_library() {
  local dir
  for dir in "/usr/lib/$triple" /usr/lib "/usr/lib/gcc/$triple"/*; do
    if [ -e "$dir/$1" ]; then
      printf '%s\n' "$dir/$1"
      return
    fi
  done
  return 1
}

# copy_named_libraries FOLDER SONAME…: with all that they need.
copy_named_libraries() {
  local folder=$1 name file
  shift
  for name in "$@"; do
    if [ -e "$folder/$name" ]; then continue; fi
    case $name in ld-linux*) continue ;; esac
    file=$(find_library "$name") || {
      echo "the build root has no $name" >&2
      return 1
    }
    cp -L "$file" "$folder/$name"
    chmod u+w "$folder/$name"
    # shellcheck disable=SC2046
    copy_named_libraries "$folder" $(patchelf --print-needed "$folder/$name")
  done
}

# copy_libraries FOLDER ELF…: the libraries that these files need.
copy_libraries() {
  local folder=$1 file
  shift
  for file in "$@"; do
    if [ ! -e "$file" ]; then continue; fi
    # shellcheck disable=SC2046
    copy_named_libraries "$folder" $(patchelf --print-needed "$file")
  done
}

# set_library_paths FOLDER: libraries find each other beside themselves.
set_library_paths() {
  local file
  for file in "$1"/*.so*; do
    case ${file##*/} in ld-linux* | libc.so.6) continue ;; esac
    patchelf --set-rpath "$1" "$file"
  done
}

# copy_programs FOLDER RUNTIME NAME…: programs of /usr/bin with the runtime's loader and libraries.
copy_programs() {
  local folder=$1 runtime=$2 name
  shift 2
  for name in "$@"; do
    cp -L "/usr/bin/$name" "$folder/$name"
    chmod u+w "$folder/$name"
    patchelf --set-interpreter "$(ls "$runtime"/lib/ld-linux-*)" --set-rpath "$runtime/lib" "$folder/$name"
  done
}
