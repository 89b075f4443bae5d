# Types of values whose errors say what to write: the module system prints the option, what was given, and the name of the type.
{ lib }:
let
  inherit (builtins) isString match stringLength;

  text =
    name: description: check:
    lib.mkOptionType {
      inherit name description;
      descriptionClass = "noun";
      check = value: isString value && check value;
      merge = lib.mergeEqualOption;
    };

  octet = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])";
  v4 = "${octet}\\.${octet}\\.${octet}\\.${octet}";
  # Coarse: `seed check-config` reads it for good when the system is built.
  v6 = "[0-9a-fA-F]{0,4}(:[0-9a-fA-F]{0,4}){2,7}(\\.[0-9]+){0,3}";
  label = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?";
  matches = pattern: value: match pattern value != null;
  directory = "(/[A-Za-z0-9._+-]+)+";
in
{
  domain = text "domain" ''domain name in lower case, as in "seed.example.org"'' (
    value: matches "${label}(\\.${label})*" value && stringLength value <= 180
  );
  address = text "address" ''IP address, as in "192.0.2.7" or "2001:db8::7"'' (
    value: matches v4 value || matches v6 value
  );
  server = text "server" ''address of a server, as in "192.0.2.53", "192.0.2.53:5353" or "[2001:db8::53]:53"'' (
    value: matches "${v4}(:[0-9]+)?" value || matches v6 value || matches "\\[${v6}]:[0-9]+" value
  );
  network = text "network" ''IP address or network, as in "192.0.2.7", "10.0.0.0/8" or "2001:db8::/32"'' (
    value: matches "${v4}(/[0-9]{1,2})?" value || matches "${v6}(/[0-9]{1,3})?" value
  );
  pool4 = text "pool4" ''IPv4 network from /8 to /29, as in "10.83.0.0/16"'' (
    value: matches "${v4}/([89]|1[0-9]|2[0-9])" value
  );
  pool6 = text "pool6" ''IPv6 network with the length 64 that ends in "::", as in "fd5e:ed00::/64"'' (
    value: matches "[0-9a-fA-F]{1,4}(:[0-9a-fA-F]{1,4}){0,3}::/64" value
  );
  port = text "port" ''port with its transport, as in "2200/tcp" or "51820/udp", or "8080" for both'' (
    matches "[1-9][0-9]{0,4}(/tcp|/udp)?"
  );
  size = text "size" ''size, a whole number with one of Ki, Mi, Gi, Ti, as in "500Mi" or "1Gi"'' (
    matches "[1-9][0-9]*(Ki|Mi|Gi|Ti)"
  );
  url = text "url" ''URL without user and query, as in "https://git.example.org"'' (
    matches "https?://[A-Za-z0-9][A-Za-z0-9.:/_~-]*"
  );
  sshUrl = text "ssh-url" ''URL of an SSH server with a user, as in "ssh://git@git.example.org"'' (
    matches "ssh://[A-Za-z0-9][A-Za-z0-9._-]*@[A-Za-z0-9][A-Za-z0-9.:/_~-]*"
  );
  directory =
    text "directory" ''absolute path of letters, digits and . _ + -, as in "/var/lib/seed"''
      (matches directory);
  # A path on the host, not a Nix path: that would be copied to the store, where everybody can read it.
  file = text "file" ''absolute path in double quotes, as in "/etc/credstore.encrypted/key"'' (
    matches "/.+"
  );

  # Used elsewhere, too.
  isV4 = matches v4;
}
