# The addresses that instances have as their gateway: the first of each pool, as the agent has it.
{ lib }:
{
  gateways =
    { pool4, pool6, ... }:
    let
      network = lib.head (lib.splitString "/" pool4);
      octets = lib.splitString "." network;
      # A network of /29 or larger ends in a multiple of 8, so nothing is carried over.
      last = toString (lib.toInt (lib.last octets) + 1);
    in
    [
      (lib.concatStringsSep "." (lib.init octets ++ [ last ]))
      "${lib.head (lib.splitString "/" pool6)}1"
    ];
}
