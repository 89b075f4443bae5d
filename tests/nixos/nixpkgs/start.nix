# Whether what NIXPKGS names is a nixpkgs.
{ nixpkgs, lib, ... }:
{
  "it evaluates a NixOS configuration" = {
    expr =
      (import (nixpkgs + "/nixos/lib/eval-config.nix") {
        system = "x86_64-linux";
        modules = [ { networking.hostName = "web"; } ];
      }).config.networking.hostName;
    expected = "web";
  };

  "it refuses what is no option" = {
    expr =
      (import (nixpkgs + "/nixos/lib/eval-config.nix") {
        system = "x86_64-linux";
        modules = [ { networking.hostNames = lib.id "web"; } ];
      }).config.networking.hostName;
    throws = [ "The option `networking.hostNames' does not exist" ];
  };
}
