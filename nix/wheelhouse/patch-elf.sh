# shellcheck shell=bash
# patch_elf_files FOLDER LOADER LIBRARY_PATH: programs get LOADER, and files that need a library of LIBRARY_PATH get those
# folders after their own run path. nixpkgs' autoPatchelfHook would replace the run path, and wheels find each other by it:
# torch looks for CUDA in $ORIGIN/../../nvidia/cu13/lib, which is another wheel.
#
# The C library's own parts are no reason to patch a library. nixpkgs' loader finds them beside itself; that of the Debian base
# looks nowhere, but every program there has loaded them (nix/debian/package.sh), those of wheels from here on too: serve
# preloads torch's libgomp, which needs some of them, in all that it starts.
patch_elf_files() {
  local file magic needed name folder interpreter arguments parts=()
  for name in libm.so.6 libdl.so.2 libpthread.so.0 librt.so.1 libutil.so.1 libresolv.so.2 libmvec.so.1 libgcc_s.so.1; do
    for folder in ${3//:/ }; do
      if [ -e "$folder/libc.so.6" ] && [ -e "$folder/$name" ]; then parts+=(--add-needed "$name"); fi
    done
  done
  while IFS= read -r -d '' file; do
    IFS= read -r -n 4 magic <"$file" || true
    [ "$magic" = $'\177ELF' ] || continue
    # Static programs and object files have neither.
    needed=$(patchelf --print-needed "$file" 2>/dev/null) || continue
    interpreter=$(patchelf --print-interpreter "$file" 2>/dev/null) || interpreter=
    arguments=()
    case $interpreter in
      /lib*/"${2##*/}") arguments=(--set-interpreter "$2" --add-rpath "$3") ;;
      *)
        for name in $needed; do
          case $name in
            ld-linux* | libc.so.* | libm.so.* | libdl.so.* | libpthread.so.* | librt.so.* | libutil.so.* | libmvec.so.* | libresolv.so.*) continue ;;
          esac
          for folder in ${3//:/ }; do
            if [ -e "$folder/$name" ]; then arguments=(--add-rpath "$3"); fi
          done
        done
        ;;
    esac
    [ "${#arguments[@]}" -eq 0 ] || patchelf "${arguments[@]}" "$file"
    if [ "${arguments[0]:-}" = --set-interpreter ] && [ "${#parts[@]}" -gt 0 ]; then patchelf "${parts[@]}" "$file"; fi
  done < <(find "$1" -type f -size +1k -print0)
}
