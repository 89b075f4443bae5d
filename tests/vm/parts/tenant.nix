# What a tenant pushes: a flake with one instance, a page of nginx. The system is evaluated and built with the test, by mkSeed; the flake
# hands it on, because the machine of the test has no nixpkgs to evaluate.
{ pkgs, mkSeed }:
let
  seed = mkSeed {
    name = "web";
    module = {
      seed.size = "s";
      seed.expose.http.enable = true;
      services.nginx = {
        enable = true;
        virtualHosts.default.locations."/".return = "200 'Hello from Seed'";
      };
    };
  };
  busybox = pkgs.pkgsStatic.busybox;
in
{
  meta = pkgs.writeText "meta.json" (builtins.toJSON seed.meta);

  flake = pkgs.writeText "flake.nix" ''
    {
      outputs = _: let
        # A store path that is there already, known as one although this flake did not make it.
        known = path: builtins.appendContext path { ''${path}.path = true; };
        system = known "${seed.toplevel}";
        busybox = "''${known "${busybox}"}/bin/busybox";
      in {
        seeds.web = {
          meta = builtins.fromJSON (builtins.readFile ./meta.json);
          toplevel = derivation {
            name = "web";
            system = "${pkgs.system}";
            builder = busybox;
            args = [ "sh" "-euc" '''
              ''${busybox} mkdir $out
              for part in kernel initrd init kernel-params; do ''${busybox} ln -s ''${system}/$part $out/$part; done
            ''' ];
          };
        };
      };
    }
  '';
}
