# The smallest thing that Seed can run, without nixpkgs: one VM with a web server, made of three tarballs.
#
# Read it to learn what Seed asks of a flake, which is little: an output `seeds.<name>` with two attributes,
#   meta      what the VM needs of its host, as plain data;
#   toplevel  a folder with `kernel`, `initrd`, `init` and `kernel-params`, as every NixOS system has.
# Use it where nixpkgs is out of reach. Everywhere else start from the template `instance`: there a NixOS module says
# all of this in five lines.
{
  description = "A page from a microVM";

  inputs = {
    # A static busybox: the builder, and the web server.
    tools = { url = "http://127.0.0.1:8123/tools.tar.gz"; flake = false; };
    # A kernel, and an initrd that mounts the VM's own store paths at /nix/store and starts `init` from there.
    # `file+` leaves these two as they are: the builder below unpacks them, far faster than Nix would.
    boot = { url = "file+http://127.0.0.1:8123/boot.tar.gz"; flake = false; };
    # A small Linux system with systemd.
    root = { url = "file+http://127.0.0.1:8123/root.tar.gz"; flake = false; };
  };

  outputs = { tools, boot, root, ... }:
    let
      # Change this, commit and push: only `toplevel` is built again, which is a few small files.
      page = "Hello from Seed";

      web = ''
        [Unit]
        Description=The page
        # What Seed tells the VM about itself: SEED_FQDN, SEED_NAMESPACE, SEED_INSTANCE …
        [Service]
        EnvironmentFile=-/run/seed/env
        ExecStart=${tools}/bin/busybox httpd -f -p 80 -h /srv/www
      '';

      build = name: script: attrs: derivation ({
        inherit name;
        system = "x86_64-linux";
        builder = "${tools}/bin/busybox";
        args = [ "sh" "-euc" script ];
        b = "${tools}/bin/busybox";
      } // attrs);

      # Unpacked once; every page that is ever pushed shares it.
      system = build "seed-minimal-system" ''
        $b mkdir $out
        for tarball in ${boot} ${root}; do $b tar -xzf $tarball -C $out; done
      '' { };

      # `layer` lies over the system: what it has at a path wins. Units, pages and settings go there.
      toplevel = build "seed-web" ''
        $b mkdir -p $out/layer/etc/systemd/system/multi-user.target.wants $out/layer/srv/www
        $b ln -s ${system}/boot/kernel ${system}/boot/initrd $out/
        $b printf %s "$params" >$out/kernel-params
        $b printf '%s\n' "$page" >$out/layer/srv/www/index.html
        $b printf '%s\n' "$web" >$out/layer/etc/systemd/system/web.service
        $b ln -s ../web.service $out/layer/etc/systemd/system/multi-user.target.wants/
        $b printf '%s\n' "#!$b sh" "b=$b" "out=$out" "$init" >$out/init
        $b chmod +x $out/init
      '' {
        inherit page web init;
        # Quiet, because a serial console is slow; and spared what takes a VM seconds and tells it nothing.
        params = "quiet loglevel=3 systemd.show_status=no systemd.condition_needs_update=no lsm=landlock "
          + "mitigations=off random.trust_cpu=1 no_timer_check tsc=reliable cryptomgr.notests";
      };

      # Process 1 of the VM until systemd is. Nothing under /nix/store can be written to: the system is seen through a
      # layer in memory, which takes what is written and is gone when the VM stops. What shall stay goes on a volume.
      init = ''
        $b mkdir -p /memory /system
        $b mount -t tmpfs -o mode=0755 memory /memory
        $b mkdir -p /memory/upper /memory/work
        $b mount -t overlay -o lowerdir=$out/layer:${system}/root,upperdir=/memory/upper,workdir=/memory/work root /system
        $b mkdir -p /system/nix/store /system/proc /system/sys /system/dev
        $b mount --bind /nix/store /system/nix/store
        for place in proc sys dev; do $b mount --move /$place /system/$place; done
        $b touch /init # switch_root asks for it before it empties a root
        exec $b switch_root /system /usr/lib/systemd/systemd
      '';
    in
    {
      seeds.web = {
        meta = {
          version = 1;
          name = "web";
          system = "x86_64-linux";
          size = "xs";
          expose.http = { port = 80; protocol = "http"; };
          storage.data = { size = "64Mi"; mountPoint = "/seed/storage/data"; };
          rollout = "recreate";
          acme = false;
          shoot = false;
          tpm = true;
        };

        inherit toplevel;
      };
    };
}
