//! Tables for people: aligned columns, which are folded where the terminal is too narrow for them.

use super::Look;

pub(super) const DIM: &str = "2";
/// The least of a line that text is folded into.
const LEAST: usize = 20;

pub(super) fn paint(text: &str, colour: &str, look: Look) -> String {
    if look.colour && !text.is_empty() { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
}

/// A cell: its text, and how it is painted.
pub(super) type Cell = (String, Option<&'static str>);

fn painted((text, colour): &Cell, look: Look) -> String {
    colour.map_or_else(|| text.clone(), |colour| paint(text, colour, look))
}

fn length(text: &str) -> usize {
    text.chars().count()
}

/// Rows with aligned columns, two spaces apart, without trailing spaces. Columns that are empty in all rows but the first are left out.
///
/// Where they are wider than the terminal, as many columns as fit stay beside each other, and each of the others is a line below its row,
/// with its title: nothing is cut off, and a narrow terminal shows no lines that run into each other.
pub(super) fn table(rows: &[Vec<Cell>], indent: &str, look: Look) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| length(&cell.0)).max().unwrap_or(0);
    let kept: Vec<(usize, usize)> = (0..columns)
        .filter(|column| rows.iter().skip(1).any(|row| row.get(*column).is_some_and(|cell| !cell.0.is_empty())))
        .map(|column| (column, width(column)))
        .collect();
    let (beside, below) = kept.split_at(beside(&kept, length(indent), look.columns));
    let mut text = String::new();
    for (at, row) in rows.iter().enumerate() {
        let mut line = String::from(indent);
        let mut owed = 0;
        for (column, width) in beside {
            let Some(cell) = row.get(*column) else { break };
            line.extend(std::iter::repeat_n(' ', owed));
            line.push_str(&painted(cell, look));
            owed = width + 2 - length(&cell.0);
        }
        // A row that only goes on with what the one above has below has nothing else.
        if !line.trim().is_empty() || below.is_empty() {
            text.push_str(line.trim_end());
            text.push('\n');
        }
        if at > 0 {
            text.push_str(&folded(row, &rows[0], indent, beside, below, look));
        }
    }
    text
}

/// How many of the columns have room beside each other.
fn beside(kept: &[(usize, usize)], indent: usize, room: usize) -> usize {
    let total = kept.iter().fold(indent, |sum, (_, width)| sum + width + 2).saturating_sub(2);
    if room == 0 || total <= room {
        return kept.len();
    }
    let mut end = indent;
    let fit = kept.iter().take_while(|(_, width)| {
        let fits = end + width <= room;
        end += width + 2;
        fits
    });
    fit.count().max(1)
}

/// The cells of a row that are below it: `TITLE  text`, under the second column.
fn folded(row: &[Cell], titles: &[Cell], indent: &str, beside: &[(usize, usize)], below: &[(usize, usize)], look: Look) -> String {
    let title = |column: usize| titles.get(column).map_or("", |title| title.0.as_str());
    let widest = below.iter().map(|(column, _)| length(title(*column))).max().unwrap_or(0);
    // The first column tells the rows apart, so what is below stands to its right; but not at the far end of the line.
    let start = length(indent) + beside.first().map_or(0, |(_, width)| *width).min(LEAST) + 2;
    let room = look.columns.saturating_sub(start + widest + 2).max(LEAST);
    let mut text = String::new();
    for (column, _) in below {
        let Some(cell) = row.get(*column).filter(|cell| !cell.0.is_empty()) else { continue };
        let title = title(*column);
        let mut head = format!("{}{}{}", " ".repeat(start), paint(title, DIM, look), " ".repeat(widest + 2 - length(title)));
        for line in wrapped(&cell.0, room) {
            text.push_str(&format!("{head}{}\n", painted(&(line, cell.1), look)));
            head = " ".repeat(start + widest + 2);
        }
    }
    text
}

/// Lines of at most so many letters, of whole words where they are not longer themselves.
fn wrapped(text: &str, room: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let last = lines.last_mut().expect("there is one from the start");
        if last.is_empty() {
            last.push_str(word);
        } else if length(last) + 1 + length(word) <= room {
            last.push(' ');
            last.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Vec<Cell>> {
        let row = |cells: [&str; 5]| cells.iter().map(|cell| ((*cell).to_owned(), None)).collect();
        vec![
            row(["INSTANCE", "STATE", "PUBLIC", "NAME", "DETAIL"]),
            row(["web", "running", "", "web.s-a.seed.example", ""]),
            row(["api", "failed", "", "api.s-a.seed.example", "nginx.service failed and nobody knows why"]),
        ]
    }

    #[test]
    fn what_has_no_room_is_below_with_its_title() {
        let at = |columns| table(&rows(), "  ", Look { columns, ..Look::default() });
        let wide = "  INSTANCE  STATE    NAME                  DETAIL\n\
                    \x20 web       running  web.s-a.seed.example\n\
                    \x20 api       failed   api.s-a.seed.example  nginx.service failed and nobody knows why\n";
        assert_eq!([at(0), at(84)], [wide, wide]);
        assert_eq!(
            at(50),
            "  INSTANCE  STATE    NAME\n\
             \x20 web       running  web.s-a.seed.example\n\
             \x20 api       failed   api.s-a.seed.example\n\
             \x20           DETAIL  nginx.service failed and\n\
             \x20                   nobody knows why\n"
        );
        for columns in 1..90 {
            let text = at(columns);
            assert!(["web.s-a.seed.example", "nginx.service", "why"].iter().all(|part| text.contains(part)), "{columns}:\n{text}");
            assert!(columns < 50 || text.lines().all(|line| length(line) <= columns), "{columns}:\n{text}");
        }
    }

    #[test]
    fn a_row_that_goes_on_with_the_one_above_has_no_empty_line() {
        let row = |cells: [&str; 2]| cells.iter().map(|cell| ((*cell).to_owned(), None)).collect();
        let rows = [row(["REPOSITORY", "WHO ELSE"]), row(["app", "SHA256:aaaaaaaaaaaa read"]), row(["", "SHA256:b deploy"])];
        let text = table(&rows, "", Look { columns: 30, ..Look::default() });
        assert_eq!(
            text,
            "REPOSITORY\napp\n            WHO ELSE  SHA256:aaaaaaaaaaaa\n                      read\n            WHO ELSE  SHA256:b deploy\n"
        );
    }
}
