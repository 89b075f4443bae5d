//! What is written to a volume stays.

use crate::machine::Machine;

#[test]
fn data_survives_a_redeploy_and_a_volume_grows_and_is_kept_when_it_is_dropped() {
    let machine = Machine::new("volume", &[]);
    let ann = machine.tenant("ann", "my-app");
    // The page counts the boots, on the volume.
    ann.edit(
        "ExecStart=${tools}/bin/busybox httpd -f -p 80 -h /srv/www",
        "RequiresMountsFor=/seed/storage/data\n        ExecStartPre=${tools}/bin/busybox sh -c 'echo boot >>/seed/storage/data/index.html; \
         ${tools}/bin/busybox df -m /seed/storage/data | ${tools}/bin/busybox tail -n 1 >>/seed/storage/data/index.html'\n        \
         ExecStart=${tools}/bin/busybox httpd -f -p 80 -h /seed/storage/data",
    );
    ann.plant();
    let boots = |text: &str| text.lines().filter(|line| *line == "boot").count();
    let first = ann.page("web");
    assert_eq!(boots(&first), 1, "{first}");
    ann.edit("size = \"64Mi\"", "size = \"160Mi\"");
    let text = ann.push(&[]).all();
    assert!(text.contains("volumes changed"), "{text}");
    let second = ann.page("web");
    assert_eq!(boots(&second), 2, "{second}");
    let size: u64 =
        second.lines().last().and_then(|line| line.split_whitespace().nth(1)).and_then(|mib| mib.parse().ok()).expect("df");
    assert!(size > 100, "it grew: {second}");
    // Dropped from the flake: moved aside, not deleted.
    ann.edit("storage.data = { size = \"160Mi\"; mountPoint = \"/seed/storage/data\"; };", "");
    ann.edit(
        "RequiresMountsFor=/seed/storage/data\n        ",
        "ExecStartPre=${tools}/bin/busybox mkdir -p /seed/storage/data\n        ",
    );
    ann.push(&[]).ok();
    let status = ann.shell(&["status"]).ok();
    assert!(status.contains("data"), "{status}");
    let kept = machine.run(&["find", "/var/lib/seed/volumes/retired", "-name", "*.img"]).ok();
    assert_eq!(kept.lines().count(), 1, "{kept}");
}
