# What tenants have been shown, as it was written (`tests/nixos/published/`): it goes on evaluating, and means what it meant.
{
  lib,
  nixpkgs,
  project,
  sopsNix,
  ...
}:
let
  seed.lib = import (project + "/nixos-modules/lib.nix") { inherit nixpkgs sopsNix; };
  published = name: ../published + "/${name}.nix";
  meta =
    name:
    (seed.lib.mkSeed {
      name = "web";
      module = published name;
      extraModules = [ { options.services.myapp.environmentFile = lib.mkOption { type = lib.types.path; }; } ];
    }).meta;
  flake = name: lib.attrNames ((import (published name)).outputs { seed = { inherit (seed) lib; }; }).seeds;

  plain = {
    version = 1;
    name = "web";
    system = "x86_64-linux";
    size = "xs";
    expose = { };
    storage = { };
    rollout = "recreate";
    acme = false;
    shoot = false;
    tpm = true;
    domains = [ ];
  };
  tcp = port: {
    inherit port;
    protocol = "tcp";
  };
  https = {
    port = 443;
    protocol = "http";
  };
  volume = name: size: {
    ${name} = {
      inherit size;
      mountPoint = "/seed/storage/${name}";
    };
  };
  at = size: mountPoint: { inherit size mountPoint; };
  data = volume "data" "1Gi";
  caddy.caddy = at "100Mi" "/var/lib/caddy";

  first = {
    expose.http = tcp 80;
    storage = data;
  };
  cases = {
    web = first;
    static = first;
    caddy = {
      expose = { inherit https; };
      storage = caddy;
      acme = true;
    };
    caddy-proxy = cases.caddy;
    nginx-acme = {
      expose = {
        inherit https;
        http = tcp 80;
      };
      storage.acme = at "100Mi" "/var/lib/acme";
      acme = true;
    };
    multi-web = {
      expose = { inherit https; };
      storage = caddy // data;
      acme = true;
    };
    multi-api.expose.myapi = tcp 3000;
    options = {
      expose = {
        http = tcp 80;
        myapp = {
          port = 9090;
          protocol = "udp";
        };
        other = tcp 9091;
      };
      storage = data;
      acme = true;
    };
    expose = {
      expose = {
        https = https // {
          port = 8443;
        };
        ssh = tcp 22;
        dns = {
          port = 53;
          protocol = "dns";
        };
        postgresql = tcp 5432;
        myapp = tcp 9090;
        http = tcp 8080;
      };
      acme = true;
    };
    older = {
      size = "s";
      expose = {
        http = tcp 8080;
        dns = {
          port = 53;
          protocol = "dns";
        };
        grpc = {
          port = 9090;
          protocol = "grpc";
        };
      };
      storage = data // {
        cache = at "500Mi" "/tmp/cache";
      };
      acme = true;
      shoot = true;
    };
  }
  // lib.optionalAttrs (sopsNix != null) {
    secret-of-myapp = { };
    dns = {
      size = "s";
      expose = {
        dns = {
          port = 53;
          protocol = "dns";
        };
        api = tcp 8081;
      };
      storage = data;
    };
    api = {
      expose.myapp = tcp 3000;
      storage = data;
    };
  };
in
lib.mapAttrs' (
  name: expected:
  lib.nameValuePair "${name}.nix" {
    expr = meta name;
    expected = plain // expected;
  }
) cases
// {
  "flake.nix" = {
    expr = flake "flake";
    expected = [ "web" ];
  };
  "flake-three.nix" = {
    expr = flake "flake-three";
    expected = [
      "api"
      "db"
      "web"
    ];
  };
  "flake-multi.nix" = {
    expr = flake "flake-multi";
    expected = [
      "api"
      "web"
    ];
  };
}
