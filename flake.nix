# Wires only: what is wired stands in package.nix, nixos-modules/, templates/ and tests/.
#
# There is no flake.lock: whoever uses this flake locks its inputs in their own, and `nix flake lock` makes one here.
{
  description = "A NixOS host as a small cloud: git push a NixOS module, get a microVM";

  inputs = {
    # 25.11 is the first with a Rust that is new enough.
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-25.11";
    sops-nix = {
      url = "github:Mic92/sops-nix";
      inputs.nixpkgs.follows = "nixpkgs";
    };
  };

  outputs =
    {
      self,
      nixpkgs,
      sops-nix,
    }:
    let
      inherit (nixpkgs) lib;
      # Where virtual machines can be run: instances have their host's architecture, and only this one is tried.
      systems = [ "x86_64-linux" ];
      each = make: lib.genAttrs systems (system: make nixpkgs.legacyPackages.${system});
      tenants = import ./nixos-modules/lib.nix {
        inherit nixpkgs;
        sopsNix = sops-nix;
      };
      checks =
        pkgs:
        import ./tests/checks.nix {
          inherit self pkgs;
          inputs = { inherit nixpkgs sops-nix; };
        };
    in
    {
      lib = {
        # seeds.<name> = seed.lib.mkSeed { name = "<name>"; module = ./<name>.nix; };
        inherit (tenants) mkSeed;
        # The text of nixos-modules/OPTIONS.md.
        optionsReference = (import ./nixos-modules/options-reference.nix { inherit lib; }).markdown;
      };

      nixosModules = import ./nixos-modules;

      overlays.default = final: _: { seed = final.callPackage ./package.nix { }; };

      packages = each (pkgs: rec {
        seed = pkgs.callPackage ./package.nix { };
        default = seed;
      });

      # Every folder of templates/, described as its flake is.
      templates = lib.mapAttrs (name: _: {
        path = ./templates + "/${name}";
        inherit (import (./templates + "/${name}/flake.nix")) description;
      }) (lib.filterAttrs (_: kind: kind == "directory") (builtins.readDir ./templates));

      checks = each checks;

      apps = each (pkgs: {
        # A push becomes a page, in virtual machines of its own: what `nix flake check` tests, to look at.
        demo = {
          type = "app";
          program = "${(checks pkgs).vm-push.driver}/bin/nixos-test-driver";
          meta.description = "See a push become a page, in virtual machines";
        };
      });

      devShells = each (pkgs: {
        default = pkgs.mkShell {
          inputsFrom = [ self.packages.${pkgs.system}.seed ];
          packages = [
            pkgs.clippy
            pkgs.rustfmt
            pkgs.rust-analyzer
            pkgs.nixfmt-rfc-style
            # What the tests meet beside what the package's own do.
            pkgs.iproute2
            pkgs.nftables
            pkgs.strace
            pkgs.dbus
            pkgs.swtpm
            pkgs.tpm2-tools
            pkgs.pebble
            pkgs.lego
            pkgs.certbot
            pkgs.caddy
            pkgs.openssl
            pkgs.curl
            pkgs.haproxy
            pkgs.dnsutils
            pkgs.knot-dns
            pkgs.unbound
          ];
          # So that the tests of the modules find what they evaluate.
          NIXPKGS = nixpkgs;
          SOPS_NIX = sops-nix;
        };
      });

      formatter = each (pkgs: pkgs.nixfmt-tree);
    };
}
