# shellcheck shell=bash
# Packages the build root's compiler. package.sh, beside which this is read, is left as it is when this changes: all wheels
# are made with what it makes.
# shellcheck disable=SC2154  # triple: package.sh sets it

# copy_compiler FOLDER RUNTIME SHELL: the root's gcc and binutils. FOLDER/root is what gcc takes for the system's root; the
# programs in FOLDER/bin say so to it, and what it makes runs with RUNTIME.
copy_compiler() {
  local folder=$1 root=$1/root runtime=$2 shell=$3 version parts name loader programs
  version=$(readlink -f "/usr/bin/$triple-gcc")
  version=${version##*-}
  parts=lib/gcc/$triple/$version
  loader=$(ls "$runtime"/lib/ld-linux-*)
  mkdir -p "$folder/bin" "$folder/lib" "$root"/usr/{bin,lib64,"lib/$triple","$parts"}
  ln -s usr/lib usr/lib64 "$root/"

  # What it reads and links: headers, start files, the C library's scripts and static parts; the libraries are RUNTIME's.
  cp -r /usr/include "$root/usr/include"
  chmod -R u+w "$root"
  rm -rf "$root"/usr/include/python* "$root/usr/include/$triple"/python*
  cp "/usr/lib/$triple"/*crt*.o "/usr/lib/$triple"/lib{c,m}.so "/usr/lib/$triple"/lib{c_nonshared,dl,pthread,rt,util}.a "$root/usr/lib/$triple/"
  ln -s "$runtime"/lib/*.so.* "$root/usr/lib/$triple/"
  ln -s "$loader" "$root/usr/lib64/"
  ln -s "$loader" "$root/usr/lib/"
  cp -r "/usr/$parts"/{include,crt*.o,libgcc.a,libgcc_eh.a,libgcc_s.so,libgomp.spec,libstdc++.a} "$root/usr/$parts/"
  for name in libatomic.so.1 libgomp.so.1 libstdc++.so.6; do
    ln -s "$runtime/lib/$name" "$root/usr/$parts/${name%.so.*}.so"
  done

  # Its programs, with what they need beside RUNTIME.
  cp "/usr/$parts"/{cc1,cc1plus,collect2,liblto_plugin.so,lto-wrapper} "$root/usr/$parts/"
  for name in ar as ld.bfd nm objcopy objdump ranlib readelf strip "cpp-$version" "gcc-$version" "g++-$version"; do
    cp -L "/usr/bin/$triple-$name" "$root/usr/bin/${name%-"$version"}"
  done
  mv "$root/usr/bin/ld.bfd" "$root/usr/bin/ld"
  programs=("$root"/usr/bin/* "$root/usr/$parts"/{cc1,cc1plus,collect2,lto-wrapper})
  copy_libraries "$folder/lib" "${programs[@]}"
  drop_runtime_libraries "$folder/lib" "$runtime"
  set_library_paths "$folder/lib" "$runtime/lib"
  set_program "$runtime/lib:$folder/lib" "${programs[@]}"
  ln -s ../../../../bin/{as,ld} "$root/usr/$parts/"

  # A program that it links is started by RUNTIME's loader and finds RUNTIME's libraries.
  printf '*link:\n+ -rpath %s/lib %%{!shared:%%{!static:%%{!static-pie:-dynamic-linker %s}}}\n\n' "$runtime" "$loader" >"$root/link.specs"
  for name in gcc g++ cpp; do
    printf '#!%s\nexec %q --sysroot=%q -specs=%q "$@"\n' "$shell" "$root/usr/bin/$name" "$root" "$root/link.specs" >"$folder/bin/$name"
    chmod +x "$folder/bin/$name"
  done
  ln -s gcc "$folder/bin/cc"
  ln -s g++ "$folder/bin/c++"
  for name in ar as ld nm objcopy objdump ranlib readelf strip; do ln -s "$root/usr/bin/$name" "$folder/bin/"; done
}
