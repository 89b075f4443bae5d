# The meta of an instance, which its host reads (`src/spec/manifest.rs`), and everything that is wrong with it.
#
# A function of plain values, without nixpkgs and without the module system: so it is tested with nothing but Nix, and everything that is
# wrong is said at once, in the words that the host would use. A problem is a text: the option, what was given, what to write.
{
  # One DNS label.
  name,
  system ? "x86_64-linux",
  size ? "xs",
  # Name to `{ enable, port, protocol, proxyProtocol }`; null where nothing was said.
  expose ? { },
  # Name to `{ size, mountPoint, user, group, mode }`; all but `size` may be null.
  storage ? { },
  # Name to `{ service, port }`; `port` may be null.
  connect ? { },
  # Names of the tenant's own.
  domains ? [ ],
  rollout ? "recreate",
  # null: as the protocols say.
  acme ? null,
  shoot ? false,
  tpm ? rollout != "rolling",
  # Whether sops-nix has secrets to decrypt.
  sops ? false,
  # The users and groups that the instance declares; null if that does not matter.
  users ? null,
  groups ? null,
}:
let
  inherit (builtins)
    attrNames
    attrValues
    concatLists
    concatStringsSep
    elem
    elemAt
    filter
    fromJSON
    genList
    hasAttr
    isInt
    isString
    length
    listToAttrs
    mapAttrs
    match
    readFile
    stringLength
    substring
    toJSON
    ;

  sizes = fromJSON (readFile ../../vmconfigs/sizes.json);
  services = fromJSON (readFile ../../vmconfigs/services.json);
  protocols = [
    "tcp"
    "udp"
    "dns"
    "http"
    "grpc"
  ];

  # In the order in which people think of them, not in that of the alphabet.
  sizeNames = filter (one: hasAttr one sizes) [
    "xs"
    "s"
    "m"
    "l"
    "xl"
  ];

  list = concatStringsSep ", ";
  quoted = toJSON;
  unless = condition: text: if condition then [ ] else [ text ];
  each = attrs: check: concatLists (map (key: check key attrs.${key}) (attrNames attrs));
  isPort = port: isInt port && port >= 1 && port <= 65535;

  # --- names ---------------------------------------------------------------------------------------------------------------------------

  # `what` is an option; `most` is how long a name may be, and `why` not longer.
  label =
    what: text: most: why:
    if text == "" then
      [ "${what}: the empty name is no DNS label: write lower-case letters, digits and hyphens" ]
    else if stringLength text > most then
      [ "${what}: ${quoted text} is longer than ${toString most} characters${why}: write a shorter name" ]
    else
      unless (match "[a-z0-9]([a-z0-9-]*[a-z0-9])?" text != null)
        "${what}: ${quoted text} is no DNS label: write lower-case letters, digits and hyphens, with no hyphen at either end (as in my-app)";

  # --- ports ---------------------------------------------------------------------------------------------------------------------------

  # What was said, completed from the table of well-known services.
  exposed = mapAttrs (
    key: given:
    let
      known = services.${key} or { };
      orKnown = field: default: if given.${field} or null != null then given.${field} else known.${field} or default;
    in
    {
      port = orKnown "port" null;
      protocol = orKnown "protocol" "tcp";
    }
    # Left out where it is as ever, so that older hosts read what they know.
    // (if given.proxyProtocol or false then { proxyProtocol = true; } else { })
  ) (listToAttrs (filter (one: one.value.enable or true) (pairs expose)));

  pairs =
    attrs:
    map (key: {
      name = key;
      value = attrs.${key};
    }) (attrNames attrs);

  transports =
    protocol:
    {
      udp = [ "udp" ];
      dns = [
        "tcp"
        "udp"
      ];
    }
    .${protocol} or [ "tcp" ];

  exposeProblems = each exposed (
    key:
    {
      port,
      protocol,
      proxyProtocol ? false,
    }:
    let
      option = "seed.expose.${key}";
      earlier = filter (other: other < key && exposed.${other}.port == port) (attrNames exposed);
      clashes = filter (
        other: filter (one: elem one (transports exposed.${other}.protocol)) (transports protocol) != [ ]
      ) earlier;
    in
    label "seed.expose" key 40 ""
    ++ (
      if port == null then
        [
          "${option}: ${quoted key} is no well-known service, and no port was given: write ${option} = { port = 9090; protocol = \"tcp\"; }, or use one of the known names: ${list (attrNames services)}"
        ]
      else
        unless (isPort port) "${option}.port: ${toString port} is no port: write a number from 1 to 65535"
    )
    ++ unless (elem protocol protocols) "${option}.protocol: ${quoted protocol} is no protocol: write one of ${list protocols}"
    ++ unless (
      !proxyProtocol || protocol != "udp"
    ) "${option}.proxyProtocol: is for ports with TCP, and this one has none: leave it out"
    ++ (
      if port != null && clashes != [ ] then
        [
          "${option}: port ${toString port} is exposed as seed.expose.${elemAt clashes 0} already: write another port, or remove one of the two"
        ]
      else
        [ ]
    )
  );

  # --- volumes -------------------------------------------------------------------------------------------------------------------------

  units = {
    Ki = 1024;
    Mi = 1024 * 1024;
    Gi = 1024 * 1024 * 1024;
    Ti = 1024 * 1024 * 1024 * 1024;
    k = 1000;
    M = 1000 * 1000;
    G = 1000 * 1000 * 1000;
    T = 1000 * 1000 * 1000 * 1000;
  };
  least = 8 * units.Mi;
  most = 16 * units.Ti;

  sizeProblems =
    option: text:
    let
      parts = if isString text then match "0*([0-9]+)(Ki|Mi|Gi|Ti|k|M|G|T)" text else null;
      factor = units.${elemAt parts 1};
      # More digits than any allowed size has, and less than an integer holds.
      long = stringLength (elemAt parts 0) > 15;
      count = fromJSON (elemAt parts 0);
    in
    if parts == null then
      [ "${option}: ${quoted text} is no size: write a whole number and one of Ki, Mi, Gi, Ti (as in 500Mi or 1Gi)" ]
    else
      unless (!long && count <= most / factor && count * factor >= least) "${option}: ${quoted text} is out of range: write 8Mi to 16Ti";

  mountPointOf = key: if storage.${key}.mountPoint or null != null then storage.${key}.mountPoint else "/seed/storage/${key}";

  # Whether one path is the other or lies below it.
  nested = a: b: below a b || below b a;
  below = outer: inner: inner == outer || substring 0 (stringLength outer + 1) inner == outer + "/";

  # What a volume would hide there.
  reserved = [
    "/nix"
    "/proc"
    "/sys"
    "/dev"
    "/run"
    "/boot"
    "/etc"
    "/usr"
    "/seed/tpm"
    "/bin"
  ];

  mountPointProblems =
    option: path:
    let
      hidden = filter (taken: nested taken path) reserved;
      suggestion = "write another place, as /seed/storage/data or /var/lib/app";
    in
    if path == "/" then
      [ "${option}: \"/\" is the root of the system, which lives in memory: ${suggestion}" ]
    else if match "(/[A-Za-z0-9._+@-]+)+" path == null || match ".*/\\.\\.?(/.*)?" path != null || stringLength path > 200 then
      [
        "${option}: ${quoted path} is no absolute path of letters, digits and . _ - + @ without '.', '..' or doubled slashes: write one, as /seed/storage/data"
      ]
    else
      unless (hidden == [ ]) "${option}: ${quoted path} would hide ${elemAt hidden 0}: ${suggestion}";

  storageProblems = each storage (
    key: given:
    let
      option = "seed.storage.${key}";
      at = mountPointOf key;
      clashes = filter (other: other < key && nested (mountPointOf other) at) (attrNames storage);
      mode = given.mode or null;
      declared =
        field: known:
        let
          given' = given.${field} or null;
        in
        unless (given' == null || known == null || elem given' known)
          "${option}.${field}: there is no ${field} ${quoted given'}: declare it as users.${field}s.${given'}, or write one that a service declares";
    in
    label "seed.storage" key 20 ", which is all that a virtio disk's serial number holds"
    ++ sizeProblems "${option}.size" given.size
    ++ mountPointProblems "${option}.mountPoint" at
    ++ (
      if clashes == [ ] then
        [ ]
      else
        [
          "${option}.mountPoint: ${quoted at} collides with ${quoted (mountPointOf (elemAt clashes 0))} of seed.storage.${elemAt clashes 0}: write a path that is neither the same nor below it"
        ]
    )
    ++ unless (
      mode == null || match "[0-7]{3,4}" mode != null
    ) "${option}.mode: ${quoted mode} is no file mode: write three or four octal digits, as 0750"
    ++ declared "user" users
    ++ declared "group" groups
  );

  # --- the rest ------------------------------------------------------------------------------------------------------------------------

  connectProblems = each connect (
    key:
    { service, port }:
    let
      option = "seed.connect.${key}";
    in
    unless (match "[A-Za-z][A-Za-z0-9_-]*" key != null)
      "seed.connect: ${quoted key} makes no name of an environment variable: write letters, digits, hyphens and underscores, beginning with a letter"
    ++ unless (match "[a-z0-9]([a-z0-9.-]*[a-z0-9])?" service != null)
      "${option}.service: ${quoted service} is no name of an instance: write the name of another instance of this flake, as in seeds.<name>"
    ++ unless (port == null || isPort port) "${option}.port: ${toString port} is no port: write a number from 1 to 65535"
  );

  # Of one name; `at` is where it stands in the list.
  domainProblems =
    at: text:
    let
      option = "seed.domains";
      part = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?";
      # Regular expressions know bytes only; a name has none above this.
      ascii = match "[ -~]*" text != null;
      twice = filter (other: other < at && elemAt domains other == text) (genList (one: one) (length domains));
    in
    (
      if !ascii then
        [ "${option}: ${quoted text} has letters that DNS has not: write it in punycode, as in xn--mnchen-3ya.example" ]
      else if match ".*[.]" text != null then
        [ "${option}: ${quoted text} ends with a dot: write it without" ]
      else if match "(.*[.])?[0-9]*" text != null || match ".*:.*" text != null then
        [ "${option}: ${quoted text} is an address or nothing: write a name, as in www.example.com" ]
      else if match "[*][.].*" text != null then
        [ "${option}: ${quoted text} is a wildcard: write each name that there is to be" ]
      else if stringLength text > 237 then
        [ "${option}: ${quoted text} is longer than 237 characters: write a shorter name" ]
      else if match "[^.]*" text != null then
        [ "${option}: ${quoted text} has one label only: write the whole name, as in www.example.com" ]
      else
        unless (match "${part}([.]${part})+" text != null)
          "${option}: ${quoted text} is no name in the DNS: write labels of lower-case letters, digits and hyphens with dots between them, as in www.example.com"
    )
    ++ unless (twice == [ ]) "${option}: ${quoted text} stands there twice: remove one of the two";

  count =
    what: attrs: highest:
    unless (length (attrNames attrs) <= highest)
      "${what}: has ${toString (length (attrNames attrs))} entries: write at most ${toString highest}";

  acmeOn = if acme != null then acme else filter (one: elem one.protocol [ "http" "grpc" ]) (attrValues exposed) != [ ];
in
{
  problems =
    label "mkSeed: name" name 40 ""
    ++ unless (elem size sizeNames) "seed.size: ${quoted size} is no size: write one of ${list sizeNames}"
    ++ count "seed.expose" exposed 128
    ++ exposeProblems
    ++ count "seed.storage" storage 16
    ++ storageProblems
    ++ connectProblems
    ++ unless (length domains <= 16) "seed.domains: has ${toString (length domains)} entries: write at most 16"
    ++ concatLists (genList (at: domainProblems at (elemAt domains at)) (length domains))
    ++ unless (elem rollout [
      "recreate"
      "rolling"
    ]) "seed.rollout: ${quoted rollout} is no way to roll out: write \"recreate\" or \"rolling\""
    ++ unless (rollout != "rolling" || storage == { })
      "seed.rollout: \"rolling\" runs the old and the new version side by side, and two machines cannot mount one volume (seed.storage.${
        list (attrNames storage)
      }): write \"recreate\", or remove the volumes"
    ++ unless (rollout != "rolling" || !tpm)
      "seed.rollout: \"rolling\" runs the old and the new version side by side, and two machines cannot have one TPM: write \"recreate\", or seed.tpm.enable = false"
    ++ unless (rollout != "rolling" || tpm || !sops)
      "seed.rollout: \"rolling\" runs the old and the new version side by side without a TPM, and the secrets of sops are encrypted to the key in it: write \"recreate\", or remove sops.secrets"
    ++ unless (rollout == "rolling" || tpm || !sops)
      "seed.tpm.enable: false was given, but the secrets of sops are encrypted to the key in the TPM: write true, or remove sops.secrets";

  # To be read only when there are no problems.
  meta = {
    version = 1;
    inherit
      name
      system
      size
      domains
      rollout
      shoot
      tpm
      ;
    acme = acmeOn;
    expose = exposed;
    storage = mapAttrs (key: given: {
      inherit (given) size;
      mountPoint = mountPointOf key;
    }) storage;
  };
}
