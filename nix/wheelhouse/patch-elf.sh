# shellcheck shell=bash
# patch_elf_files FOLDER LOADER LIBRARY_PATH: programs get LOADER, and files that need a library of LIBRARY_PATH get those
# folders after their own run path. nixpkgs' autoPatchelfHook would replace the run path, and wheels find each other by it:
# torch looks for CUDA in $ORIGIN/../../nvidia/cu13/lib, which is another wheel.
patch_elf_files() {
  local file magic needed name folder interpreter arguments
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
            # The loader brings its own C library.
            ld-linux* | libc.so.* | libm.so.* | libdl.so.* | libpthread.so.* | librt.so.* | libutil.so.* | libmvec.so.* | libresolv.so.*) continue ;;
          esac
          for folder in ${3//:/ }; do
            if [ -e "$folder/$name" ]; then arguments=(--add-rpath "$3"); fi
          done
        done
        ;;
    esac
    [ "${#arguments[@]}" -eq 0 ] || patchelf "${arguments[@]}" "$file"
  done < <(find "$1" -type f -size +1k -print0)
}
