# Every template that has instances: a newcomer's first evaluation works, and gives each instance its own name.
{
  lib,
  nixpkgs,
  project,
  sopsNix,
  ...
}:
let
  seed.lib = import (project + "/nixos-modules/lib.nix") { inherit nixpkgs sopsNix; };
  templates = project + "/templates";
  flakes = lib.mapAttrs (name: _: import (templates + "/${name}/flake.nix")) (
    lib.filterAttrs (name: kind: kind == "directory" && lib.pathExists (templates + "/${name}/flake.nix")) (builtins.readDir templates)
  );
  # Those that need nothing but Seed; the others are looked at elsewhere.
  ours = lib.filterAttrs (_: flake: lib.attrNames (lib.functionArgs flake.outputs) == [ "seed" ]) flakes;
  metas = lib.mapAttrs (_: flake: lib.mapAttrs (_: instance: instance.meta) ((flake.outputs { inherit seed; }).seeds or { })) ours;
  ports = lib.mapAttrs (_: meta: lib.mapAttrs (_: port: port.port) meta.expose);
in
lib.mapAttrs' (
  name: metas:
  lib.nameValuePair "templates/${name}" {
    expr = lib.mapAttrs (_: meta: meta.name) metas;
    expected = lib.mapAttrs (name: _: name) metas;
  }
) metas
// {
  "each says what it is" = {
    expr = lib.filter (name: !(flakes.${name} ? description)) (lib.attrNames flakes);
    expected = [ ];
  };

  "they open what they are about" = {
    expr = lib.mapAttrs (_: ports) (removeAttrs metas [ "host" ]);
    expected = {
      instance.web.http = 80;
      instance-caddy.web = {
        http = 80;
        https = 443;
      };
      instance-api.api.myapp = 3000;
      multi = {
        api.myapi = 3000;
        web = {
          http = 80;
          https = 443;
        };
      };
    };
  };
}
