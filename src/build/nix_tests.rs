use super::*;

const A: &str = "/nix/store/0123456789abcdfghijklmnpqrsvwxyz-a";
const B: &str = "/nix/store/1123456789abcdfghijklmnpqrsvwxyz-b";

fn answer(text: &str) -> Result<BTreeMap<String, Evaluated>, BuildError> {
    read_answer(&Finished { code: Some(0), result: "success".into(), stdout: text.as_bytes().into(), stderr: Vec::new() })
}

#[test]
fn only_store_paths_are_taken_from_a_flake() {
    let read = answer(&format!(r#"{{"web":{{"meta":{{"version":1}},"drv":"{A}.drv","out":"{A}"}}}}"#)).unwrap();
    assert_eq!((read["web"].drv.as_str(), read["web"].out.as_str()), (format!("{A}.drv").as_str(), A));
    for (drv, out) in [
        ("--help", A),
        ("/etc/passwd", A),
        (A, A),
        (&format!("{A}.drv"), "/nix/store/../etc"),
        (&format!("{A}.drv^*"), A),
        (&format!("{A}.drv"), &format!("{A}/bin")),
    ] {
        let text = format!(r#"{{"web":{{"meta":{{}},"drv":"{drv}","out":"{out}"}}}}"#);
        assert!(matches!(answer(&text), Err(BuildError::Failed { .. })), "{drv} {out}");
    }
    assert!(matches!(answer("[]"), Err(BuildError::Host(_))));
    assert_eq!(answer("{}").unwrap(), BTreeMap::new());
}

#[tokio::test]
async fn roots_are_made_once_and_dropped_when_nobody_keeps_them() {
    let dir = tempfile::tempdir().unwrap();
    let builder = NixBuilder::new(NixSettings {
        nix: "/usr/bin/nix".into(),
        roots: dir.path().join("seed"),
        run: "/run/seed".into(),
        hidden: Vec::new(),
        eval_timeout_secs: 1,
        eval_memory: Bytes(1),
        build_timeout_secs: 1,
        allow_addresses: Vec::new(),
    });
    let namespace: Namespace = "s-gaydazldmnsg".parse().unwrap();
    let (a, b): (StorePath, StorePath) = (A.parse().unwrap(), B.parse().unwrap());
    let (one, two) = (builder.root_of(&namespace, "web", &a), builder.root_of(&namespace, "api", &b));
    assert!(one.ends_with("s-gaydazldmnsg/web/0123456789ab"));
    for _ in 0..2 {
        protect(&one, &a).unwrap();
        protect(&two, &b).unwrap();
    }
    assert_eq!(fs::read_link(&one).unwrap(), Path::new(A));
    builder.retain(&namespace, std::slice::from_ref(&b)).await.unwrap();
    assert_eq!((one.parent().unwrap().exists(), fs::read_link(&two).unwrap()), (false, PathBuf::from(B)));
    builder.retain(&namespace, &[]).await.unwrap();
    assert!(!dir.path().join("seed/s-gaydazldmnsg").exists());
    builder.retain(&namespace, &[]).await.unwrap();
}

#[test]
fn versions_that_give_root_away_are_known() {
    for (version, bad) in [
        ("2.26.3", true),
        ("2.3.18", true),
        ("1.11", true),
        ("2.28.5", true),
        ("2.28.6", false),
        ("2.31.3", true),
        ("2.31.4", false),
        ("2.32.7", false),
        ("2.34.4", true),
        ("2.34.5", false),
        ("2.35.0", false),
        ("3.0.0", false),
        ("2.33.4pre20260101_abc", false),
    ] {
        assert_eq!(known_bad(version), bad, "{version}");
    }
}
