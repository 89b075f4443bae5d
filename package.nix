# Seed: the one program that is agent, doors, launchers and command line. It looks for the programs that it runs when it runs them, so they
# are no inputs here: the host module names them in the configuration.
{
  lib,
  rustPlatform,
  stdenv,
  curl,
  dbus,
  dnsutils,
  e2fsprogs,
  git,
  knot-dns,
  openssh,
  systemd,
  unbound,
}:
let
  manifest = lib.importTOML ./Cargo.toml;
in
rustPlatform.buildRustPackage {
  pname = manifest.package.name;
  inherit (manifest.package) version;

  # What cargo and the tests read, so that an edit of a document builds nothing anew.
  src = lib.fileset.toSource {
    root = ./.;
    fileset = lib.fileset.unions [
      ./Cargo.lock
      ./Cargo.toml
      ./benches
      ./fuzz
      ./src
      ./templates/minimal
      ./tests
      ./units
      ./vmconfigs
    ];
  };
  cargoLock.lockFile = ./Cargo.lock;

  # A build has a user without rights, loopback, and no systemd: what runs there is everything in process, and the doors with real ssh,
  # git and a bus of their own. Not there: tests/network (makes network namespaces), tests/host (boots machines), tests/acme (wants a CA
  # and its clients), tests/nixos (evaluates Nix; a check of the flake). How exposed the units are, systemd-analyze says.
  nativeCheckInputs = [
    curl
    dbus
    dnsutils
    e2fsprogs
    git
    knot-dns
    openssh
    systemd
    unbound
  ];
  cargoTestFlags = [ "--lib" ] ++ map (test: "--test=${test}") [
    "agent"
    "doors"
    "floors"
    "plan"
    "render"
    "units"
  ];
  # These get into the system that tests/host boots, which a build cannot make.
  checkFlags = map (tests: "--skip=${tests}") [
    "copy::"
    "inside::"
    "crowd::two_hundred_half_open"
  ];

  # The manuals, and what completes the command line.
  postInstall = ''
    install -Dm 644 units/seed.toml $out/share/doc/seed/seed.toml
  ''
  # The program writes them itself.
  + lib.optionalString (stdenv.buildPlatform.canExecute stdenv.hostPlatform) ''
    $out/bin/seed man $out/share/man/man1
    install -d $out/share/bash-completion/completions $out/share/zsh/site-functions $out/share/fish/vendor_completions.d
    $out/bin/seed completion bash >$out/share/bash-completion/completions/seed
    $out/bin/seed completion zsh >$out/share/zsh/site-functions/_seed
    $out/bin/seed completion fish >$out/share/fish/vendor_completions.d/seed.fish
  '';

  meta = {
    inherit (manifest.package) description;
    license = lib.licenses.mit;
    platforms = lib.platforms.linux;
    mainProgram = "seed";
  };
}
