# `seed-shoot [--timeout MILLISECONDS] COMMAND…`: runs a command in a short-lived virtual machine with the store and volumes of this one.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  seed-shoot = pkgs.writeShellScriptBin "seed-shoot" ''
    set -euo pipefail
    PATH=${
      lib.makeBinPath [
        pkgs.coreutils
        pkgs.curl
        pkgs.jq
      ]
    }
    usage() {
      echo "usage: seed-shoot [--timeout MILLISECONDS] COMMAND [ARGUMENT]…" >&2
      exit 2
    }
    timeout=null
    if [[ ''${1-} == --timeout ]]; then
      timeout=''${2-}
      [[ $timeout =~ ^[1-9][0-9]*$ ]] || usage
      shift 2
    fi
    (($#)) || usage

    # A service has it from its EnvironmentFile, a shell reads it here.
    if [[ -z ''${SEED_SHOOT_URL-} ]]; then
      . /run/seed/env
    fi
    # The address of the service, or that of the request.
    url=''${SEED_SHOOT_URL%/shoot}/shoot

    request=$(jq -cn --argjson timeout "$timeout" \
      '{ command: $ARGS.positional } + if $timeout then { timeout: $timeout } else { } end' --args -- "$@")
    answer=$(curl --silent --show-error --fail-with-body --header 'Content-Type: application/json' --data "$request" "$url") || {
      echo "seed-shoot: $url did not run it''${answer:+: $answer}" >&2
      exit 125
    }
    jq -j .stdout <<<"$answer"
    jq -j .stderr <<<"$answer" >&2
    exit "$(jq .exitCode <<<"$answer")"
  '';
in
lib.mkIf config.seed.shoot.enable {
  environment.systemPackages = [ seed-shoot ];
}
