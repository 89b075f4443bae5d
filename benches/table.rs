//! The table: rows with a goal each, their verdicts, and the same as JSON.

use std::{fmt::Write as _, path::Path};

/// One figure and what it should be. Every goal is "at most".
pub struct Row {
    /// What the measuring code calls it; unique.
    pub key: &'static str,
    /// Of the list of goals, `C-P4`; a row beyond that list has a word.
    pub id: &'static str,
    pub what: &'static str,
    /// Against what.
    pub peer: &'static str,
    pub unit: &'static str,
    /// `None`: a figure that is good to know.
    pub goal: Option<f64>,
    pub measured: Option<f64>,
    /// What went into it; or why it was not measured.
    pub note: String,
}

impl Row {
    pub fn new(key: &'static str, id: &'static str, what: &'static str, peer: &'static str, unit: &'static str, goal: f64) -> Self {
        Self { key, id, what, peer, unit, goal: Some(goal), measured: None, note: String::new() }
    }

    /// A figure without a goal.
    pub fn known(key: &'static str, id: &'static str, what: &'static str, peer: &'static str, unit: &'static str) -> Self {
        Self { goal: None, ..Self::new(key, id, what, peer, unit, 0.0) }
    }

    fn verdict(&self) -> String {
        match (self.measured, self.goal) {
            (None, _) => "NOT MEASURED".to_owned(),
            (Some(_), None) => "-".to_owned(),
            (Some(measured), Some(goal)) if measured <= goal => "ok".to_owned(),
            (Some(measured), Some(goal)) if goal > 0.0 => format!("misses by {}x", number(measured / goal)),
            (Some(measured), Some(_)) => format!("misses by {}", number(measured)),
        }
    }
}

/// All rows so far; those of the group at work last.
#[derive(Default)]
pub struct Sheet {
    rows: Vec<Row>,
}

impl Sheet {
    pub fn begin(&mut self, rows: Vec<Row>) {
        self.rows.extend(rows);
    }

    /// Gives a row its value.
    #[track_caller]
    pub fn set(&mut self, key: &str, measured: f64, note: impl Into<String>) {
        let row = self.rows.iter_mut().find(|row| row.key == key).unwrap_or_else(|| panic!("no row {key}"));
        (row.measured, row.note) = (Some(measured), note.into());
        eprintln!("    {:<8} {:<58} {:>9} {:<10} {} {}", row.id, row.what, number(measured), row.unit, row.verdict(), row.note);
    }

    /// Says of every row without a value why it has none.
    pub fn give_up(&mut self, why: &str) {
        for row in self.rows.iter_mut().filter(|row| row.measured.is_none() && row.note.is_empty()) {
            row.note = why.chars().take(300).collect();
            eprintln!("    {} {}: NOT MEASURED: {}", row.id, row.what, row.note);
        }
    }

    /// Prints the table, or the JSON, and writes the JSON.
    pub fn publish(&self, json: bool) {
        let document = self.json();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench.json");
        std::fs::write(&path, &document).expect("target/ can be written");
        if json {
            println!("{document}")
        } else {
            println!("{}", self.text())
        }
        eprintln!("also in {}", path.display());
    }

    fn json(&self) -> String {
        let rows = self.rows.iter().map(|row| {
            serde_json::json!({
                "id": row.id, "key": row.key, "what": row.what, "peer": row.peer, "unit": row.unit, "measured": row.measured,
                "goal": row.goal, "verdict": row.verdict(), "note": row.note,
            })
        });
        let rows: Vec<serde_json::Value> = rows.collect();
        serde_json::to_string_pretty(&serde_json::json!({ "version": 1, "profile": profile(), "rows": rows })).expect("plain data")
    }

    fn text(&self) -> String {
        const HEAD: [&str; 6] = ["goal", "what", "peer", "measured", "at most", "verdict"];
        let cells: Vec<[String; 6]> = self
            .rows
            .iter()
            .map(|row| {
                let with_unit = |value: f64| format!("{} {}", number(value), row.unit);
                [
                    row.id.to_owned(),
                    row.what.to_owned(),
                    row.peer.to_owned(),
                    row.measured.map_or("-".to_owned(), with_unit),
                    row.goal.map_or("-".to_owned(), with_unit),
                    row.verdict(),
                ]
            })
            .collect();
        let width = |column: usize| {
            let longest = cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
            longest.max(HEAD[column].len())
        };
        let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
        let mut text = format!("\nSeed, {}. Counts and ratios within one run; every goal is \"at most\".\n\n", profile());
        let mut line = |row: &[String]| {
            let padded: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            writeln!(text, "{}", padded.join("  ").trim_end()).expect("a text takes all");
        };
        line(&HEAD.map(str::to_owned));
        line(&widths.iter().map(|width| "-".repeat(*width)).collect::<Vec<_>>());
        cells.iter().for_each(|row| line(row));
        let missed = self.rows.iter().filter(|row| row.verdict().starts_with("misses")).count();
        let met = self.rows.iter().filter(|row| row.verdict() == "ok").count();
        writeln!(
            text,
            "\n{met} goals met, {missed} missed, {} rows not measured",
            self.rows.iter().filter(|row| row.measured.is_none()).count()
        )
        .expect("a text takes all");
        for row in self.rows.iter().filter(|row| !row.note.is_empty()) {
            let loud = if row.measured.is_none() { "NOT MEASURED: " } else { "" };
            writeln!(text, "  {} {}: {loud}{}", row.id, row.what, row.note).expect("a text takes all");
        }
        text
    }
}

/// How the program that was measured was compiled.
fn profile() -> &'static str {
    if cfg!(debug_assertions) {
        "UNOPTIMIZED (dev profile): CPU figures flatter the peers"
    } else {
        "profile bench (opt-level 1, cheap to build; release is faster)"
    }
}

/// Three digits that matter.
fn number(value: f64) -> String {
    match value.abs() {
        size if value.fract() == 0.0 && size < 1e9 => format!("{value:.0}"),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}
