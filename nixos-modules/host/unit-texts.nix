# The unit files of the agent and the doors: those of `units/`, with the paths of this system. There is one text of each, so what the
# tests say of it (sandbox, sockets, restarts) holds here, too.
{
  lib,
  # The program.
  seed,
  # The ingress's.
  haproxy ? "/usr/sbin/haproxy",
  # The configuration's storage.directory and paths.run.
  state ? "/var/lib/seed",
  run ? "/run/seed",
}:
let
  units = ../../units;
  names = lib.attrNames (builtins.readDir units);
  isUnit = name: lib.hasSuffix ".service" name || lib.hasSuffix ".socket" name;
  # Relative, as StateDirectory= and RuntimeDirectory= want them.
  below = lib.removePrefix;
  substitute = lib.replaceStrings
    [
      "/usr/bin/seed"
      "/usr/sbin/haproxy"
      "StateDirectory=seed/repos seed/ssh seed/dns seed/acme\n"
      "StateDirectory=seed/repos\n"
      "StateDirectory=seed\n"
      "RuntimeDirectory=seed\n"
      "/run/seed"
      "/var/lib/seed"
    ]
    [
      seed
      haproxy
      "StateDirectory=${below "/var/lib/" state}/repos ${below "/var/lib/" state}/ssh ${below "/var/lib/" state}/dns ${below "/var/lib/" state}/acme\n"
      "StateDirectory=${below "/var/lib/" state}/repos\n"
      "StateDirectory=${below "/var/lib/" state}\n"
      "RuntimeDirectory=${below "/run/" run}\n"
      run
      state
    ];
in
lib.genAttrs (lib.filter isUnit names) (name: substitute (builtins.readFile (units + "/${name}")))
