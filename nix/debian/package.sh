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

# drop_runtime_libraries FOLDER RUNTIME: of the libraries in FOLDER, those that the runtime has.
drop_runtime_libraries() {
  local file
  for file in "$1"/*.so*; do
    if [ -e "$2/lib/${file##*/}" ]; then rm "$file"; fi
  done
}

# set_library_paths FOLDER [FOLDER…]: libraries find each other beside themselves, and what the others have.
set_library_paths() {
  local file IFS=:
  for file in "$1"/*.so*; do
    case ${file##*/} in ld-linux* | libc.so.6) continue ;; esac
    patchelf --set-rpath "$*" "$file"
  done
}

# nowhere PATH: a name of the same length where nobody can make a file.
nowhere() {
  case $1 in
    /lib/) echo /sys/ ;;
    */) printf '/proc/%0*d/\n' "$((${#1} - 7))" 0 ;;
    *) printf '/proc/%0*d\n' "$((${#1} - 6))" 0 ;;
  esac
}

# close_c_library FOLDER: the loader in FOLDER looks for no library in the machine's folders, reads no list of them and
# preloads none of the machine's, and the C library takes no converters from there. nixpkgs' look in folders of their own; what
# a file says can be replaced only at the same length, so here it is a place where nothing is.
close_c_library() {
  local loader path places
  loader=$(ls "$1"/ld-linux-*)
  for path in "/usr/lib/$triple/" "/lib/$triple/" /usr/lib/ /lib/ /etc/ld.so.cache /etc/ld.so.preload; do
    LC_ALL=C sed -i "s,$path\\x00,$(nowhere "$path")\\x00,g" "$loader"
  done
  path=/usr/lib/$triple/gconv
  LC_ALL=C sed -i "s,$path,$(nowhere "$path"),g" "$1/libc.so.6"

  # The loader says itself where it looks.
  places=$("$loader" --help | sed -n 's/^ *\(\/.*\) (system search path)$/\1/p; s/^ *(libraries located via \(.*\))$/\1/p')
  if [ "$(wc -l <<<"$places")" -ne 5 ] || grep -v -E '^/(proc/0+|sys)$' <<<"$places" ||
    LC_ALL=C grep -a -o -P "(/lib/($triple/)?|/etc/ld\.so\.preload)\x00" "$loader" ||
    LC_ALL=C grep -a -o "$path" "$1/libc.so.6"; then
    echo "the C library still looks in the machine's folders" >&2
    return 1
  fi
}

# Parts of the C library that wheels name as libraries of their own, and what it opens by name itself. A loader knows a
# library by its name, once it is there: so every program of ours loads them first, and no wheel's library, nor one that is
# preloaded, nor the driver's, has to find them.
libc_parts=(libm.so.6 libdl.so.2 libpthread.so.0 librt.so.1 libutil.so.1 libresolv.so.2 libmvec.so.1 libgcc_s.so.1)

# set_program FOLDERS PROGRAM…: it runs with the loader in the first of FOLDERS, with colons between them, and their libraries.
set_program() {
  local folders=$1 file part arguments
  shift
  for file in "$@"; do
    chmod u+w "$file"
    arguments=()
    for part in "${libc_parts[@]}"; do
      # Not every architecture has libmvec.
      if [ -e "${folders%%:*}/$part" ]; then arguments+=(--add-needed "$part"); fi
    done
    # In two calls: Debian 12's patchelf, told both at once, writes the one text over the other.
    patchelf --set-interpreter "$(ls "${folders%%:*}"/ld-linux-*)" --set-rpath "$folders" "$file"
    patchelf "${arguments[@]}" "$file"
  done
}

# copy_programs FOLDER RUNTIME NAME…: programs of /usr/bin.
copy_programs() {
  local folder=$1 runtime=$2 name
  shift 2
  for name in "$@"; do
    cp -L "/usr/bin/$name" "$folder/$name"
    set_program "$runtime/lib" "$folder/$name"
  done
}
