//! The log over restarts, crashes, changes by strangers, and its own growth.

use super::*;

fn act(at: u64, verb: &str) -> Act {
    Act {
        at,
        who: "operator".into(),
        verb: verb.into(),
        arguments: vec!["a \"b\"\n".into()],
        result: "ok".into(),
        ..Act::default()
    }
}

async fn written(directory: &Path, verbs: &[&str]) {
    let audit = Audit::open(directory, u64::MAX, 0).unwrap();
    for (at, verb) in (1..).zip(verbs) {
        audit.write(act(at, verb)).await.unwrap();
    }
}

#[tokio::test]
async fn what_was_written_is_read_again_over_restarts() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), &["a", "b"]).await;
    written(dir.path(), &["c", "d", "e"]).await;
    let verbs = |since, most| -> Vec<String> {
        read(dir.path(), since, most, |entry| entry.act.verb != "d").unwrap().into_iter().map(|entry| entry.act.verb).collect()
    };
    assert_eq!(verbs(0, 100), ["a", "b", "c", "e"]);
    assert_eq!(verbs(2, 100), ["b", "e"]);
    assert_eq!(verbs(0, 2), ["c", "e"]);
    assert_eq!(verify(dir.path(), &[]).unwrap().entries, 5);
}

#[tokio::test]
async fn nobody_else_on_the_host_can_read_it() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("audit");
    fs::create_dir(&at).unwrap();
    fs::set_permissions(&at, fs::Permissions::from_mode(0o755)).unwrap();
    written(&at, &["a"]).await;
    let file = fs::read_dir(&at).unwrap().next().unwrap().unwrap().path();
    let modes = [at.as_path(), &file].map(|path| fs::metadata(path).unwrap().permissions().mode() & 0o777);
    assert_eq!(modes, [0o700, 0o600], "also if its folder was open before");
}

#[tokio::test]
async fn many_at_once_are_all_there_and_in_a_chain() {
    let dir = tempfile::tempdir().unwrap();
    let audit = Audit::open(dir.path(), u64::MAX, 0).unwrap();
    let all = (0..300).map(|at| audit.write(act(at, "x")));
    assert!(futures_util::future::join_all(all).await.iter().all(Result::is_ok));
    assert_eq!(verify(dir.path(), &[]).unwrap().entries, 300);
}

#[tokio::test]
async fn whatever_is_changed_shows() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), &["a", "b", "c"]).await;
    let path = files(dir.path()).unwrap().remove(0).1;
    let good = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = good.lines().collect();
    let forged = Entry::new(2, "00", act(9, "forged"));
    let table = [
        good.replace("\"b\"", "\"B\""),
        format!("{}\n{}\n", lines[0], lines[2]),
        format!("{}\n{}\n{}\n", lines[1], lines[0], lines[2]),
        format!("{}\n{}\n", lines[1], lines[2]),
        format!("{}\n{}\n{}\n", lines[0], serde_json::to_string(&forged).unwrap(), lines[2]),
        format!("{}\nnonsense\n", lines[0]),
    ];
    for text in table {
        fs::write(&path, &text).unwrap();
        assert!(matches!(verify(dir.path(), &[]), Err(AuditError::Broken { .. })), "{text}");
    }
    fs::write(&path, &good).unwrap();
    assert_eq!(verify(dir.path(), &[]).unwrap().entries, 3);
}

#[tokio::test]
async fn half_a_line_is_cut_off_and_the_chain_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), &["a", "b"]).await;
    let path = files(dir.path()).unwrap().remove(0).1;
    let whole = fs::read(&path).unwrap();
    for cut in 1..40 {
        fs::write(&path, &whole[..whole.len() - cut]).unwrap();
        written(dir.path(), &["c"]).await;
        assert_eq!(verify(dir.path(), &[]).unwrap().entries, 2, "{cut}");
    }
}

/// Writes so many acts into files of 1 KiB, of which 3 KiB are kept. An act takes about 400 bytes.
async fn grown(directory: &Path, acts: u64) {
    let audit = Audit::open_with(directory, Room { file: 1 << 10, all: 3 << 10 }, 0).unwrap();
    for at in 1..=acts {
        audit.write(act(at, "x")).await.unwrap();
    }
}

fn size(directory: &Path) -> u64 {
    files(directory).unwrap().iter().map(|(_, path)| fs::metadata(path).unwrap().len()).sum()
}

#[tokio::test]
async fn of_too_much_the_oldest_files_go_and_the_chain_says_from_when_on_it_speaks() {
    let dir = tempfile::tempdir().unwrap();
    grown(dir.path(), 5).await;
    assert_eq!(verify(dir.path(), &[]).unwrap().first, 1, "it has room");
    grown(dir.path(), 60).await;
    let found = verify(dir.path(), &[]).unwrap();
    assert!(found.first > 40 && found.since > 20 && found.entries < 15, "{found:?}");
    assert!(size(dir.path()) < 5 << 10, "{}", size(dir.path()));
    let told = read(dir.path(), 0, 100, |entry| entry.act.verb == "audit remove").unwrap();
    assert!(told.iter().all(|entry| entry.act.who == "agent"), "{told:?}");
    assert_eq!(told.iter().filter_map(removal).filter(|(last, _)| last + 1 == found.first).count(), 1, "{told:?}");
    // Less is to be kept from now on.
    drop(Audit::open_with(dir.path(), Room { file: 1 << 10, all: 1 }, 9).unwrap());
    let less = verify(dir.path(), &[]).unwrap();
    assert!(less.first > found.first && files(dir.path()).unwrap().len() == 1, "{less:?}");
}

#[tokio::test]
async fn a_beginning_that_no_entry_speaks_of_was_cut_off_by_somebody_else() {
    let dir = tempfile::tempdir().unwrap();
    grown(dir.path(), 60).await;
    let oldest = files(dir.path()).unwrap().remove(0).1;
    let text = fs::read_to_string(&oldest).unwrap();
    // One file, or one line more.
    fs::write(&oldest, text.split_once('\n').unwrap().1).unwrap();
    assert!(matches!(verify(dir.path(), &[]), Err(AuditError::Broken { line: 1, .. })));
    fs::remove_file(&oldest).unwrap();
    assert!(matches!(verify(dir.path(), &[]), Err(AuditError::Broken { line: 1, .. })));
    fs::write(&oldest, &text).unwrap();
    verify(dir.path(), &[]).unwrap();
    // What was changed is evidence: it stays, and so does all that follows it.
    fs::write(&oldest, text.replacen("\"x\"", "\"y\"", 1)).unwrap();
    drop(Audit::open_with(dir.path(), Room { file: 1 << 10, all: 1 }, 9).unwrap());
    assert!(oldest.exists() && matches!(verify(dir.path(), &[]), Err(AuditError::Broken { .. })));
}

#[tokio::test]
async fn a_crash_between_the_entry_and_the_removal_leaves_a_chain_that_the_next_start_shortens() {
    let dir = tempfile::tempdir().unwrap();
    grown(dir.path(), 9).await;
    let before: Vec<(PathBuf, Vec<u8>)> =
        files(dir.path()).unwrap().into_iter().map(|(_, path)| (path.clone(), fs::read(path).unwrap())).collect();
    let room = Room { file: 1 << 10, all: 1 };
    drop(Audit::open_with(dir.path(), room, 9).unwrap());
    let after = verify(dir.path(), &[]).unwrap();
    assert!(after.first > 1 && before.len() > 2, "{after:?}");
    // The crash came before the first removal, or after it; the newest file has the entries in any case.
    for gone in 0..before.len() - 1 {
        for (path, text) in &before[gone..before.len() - 1] {
            fs::write(path, text).unwrap();
        }
        verify(dir.path(), &[]).unwrap();
        drop(Audit::open_with(dir.path(), room, 9).unwrap());
        assert!(verify(dir.path(), &[]).unwrap().first >= after.first && files(dir.path()).unwrap().len() == 1);
    }
}

#[tokio::test]
async fn what_is_cut_off_at_the_end_is_known_by_the_journal() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path(), &["a", "b", "c"]).await;
    let path = files(dir.path()).unwrap().remove(0).1;
    let good = fs::read_to_string(&path).unwrap();
    let known: Vec<Checkpoint> =
        read(dir.path(), 0, 9, |_| true).unwrap().into_iter().map(|entry| (entry.number, entry.hash)).collect();
    verify(dir.path(), &known).unwrap();
    // The end, and all of it; and others in its place, which an agent wrote that found it so.
    let missing = |number: u64| matches!(verify(dir.path(), &known), Err(AuditError::Missing { number: one, .. }) if one == number);
    let two = good.lines().take(2).collect::<Vec<_>>().join("\n") + "\n";
    fs::write(&path, &two).unwrap();
    assert!(missing(3));
    written(dir.path(), &["d"]).await;
    assert!(missing(3));
    fs::write(&path, "").unwrap();
    assert!(missing(1));
    fs::write(&path, &good).unwrap();
    // Of what was removed to make room, the journal may know still.
    let dir = tempfile::tempdir().unwrap();
    grown(dir.path(), 60).await;
    verify(dir.path(), &[(1, "gone".to_owned())]).unwrap();
    let first = verify(dir.path(), &[]).unwrap().first;
    assert!(verify(dir.path(), &[(first, "another".to_owned())]).is_err());
}

#[test]
fn a_checkpoint_is_read_from_the_journal_as_it_is_written_there() {
    let line = r#"audit number=57 verb="invite new" who="a \" hash=\"x\"" hash="00ff""#;
    assert_eq!(checkpoint(line), Some((57, "00ff".to_owned())));
    for other in ["audit log entries=3 hash=\"00\"", "audit number=x verb=\"\" hash=\"0\"", "", "audit number=1"] {
        assert_eq!(checkpoint(other), None, "{other}");
    }
}
