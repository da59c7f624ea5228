//! The pages of docs/, followed as a reader would.

use std::{path::Path, process::Command};

use regex::Regex;

/// What differs each time, and what stands for it.
const VARIES: [(&str, &str); 4] = [
    (r"\b\d+\.\d+\.\d+\.\d+:\d+\b", "ADDRESS"),
    (r"\b[0-9a-f]{8}-?[0-9a-f-]{20,}\b", "ID"),
    (r"\b\d{4}-\d\d-\d\d[ T][0-9:.]+Z?", "TIME"),
    (r"\b\d+(ms|s|m|h)\b", "DURATION"),
];

/// A block of commands, or of something else, as it stands on a page.
pub struct Block(String);

/// The blocks of a page of docs/, in their order.
///
/// # Panics
/// When the page can't be read.
pub fn blocks(page: &str) -> Vec<Block> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(page);
    let text = std::fs::read_to_string(&file).expect("the page is there");
    text.split("```").skip(1).step_by(2).map(|block| Block(block.to_owned())).collect()
}

impl Block {
    /// Whether it has `text`.
    pub fn has(&self, text: &str) -> bool {
        self.0.contains(text)
    }

    /// Does what stands behind each `$ `, by `shell`, which runs what it is given, and
    /// holds what is printed against what the page shows.
    ///
    /// # Panics
    /// When they differ.
    pub fn follow(&self, shell: impl Fn(&str) -> Command) {
        for step in format!("\n{}", self.0).split("\n$ ").skip(1) {
            let (command, shown) = parts(step);
            let output = shell(&command).output().expect("there is a shell");
            let mut printed = String::from_utf8_lossy(&output.stdout).into_owned();
            if !output.status.success() {
                printed += &String::from_utf8_lossy(&output.stderr);
            }
            let (shown, printed) = (masked(shown), masked(&printed));
            assert_eq!(printed, shown, "the page shows something else for: {command}");
            println!("$ {command}\n{}", printed.join("\n"));
        }
    }
}

/// A command, with the document that it is given, and what is shown below it.
fn parts(step: &str) -> (String, &str) {
    let (first, rest) = step.split_once('\n').unwrap_or((step, ""));
    let end = first.split_once("<<'").and_then(|(_, end)| end.split('\'').next());
    let Some(end) = end.map(|end| format!("\n{end}\n")) else { return (first.to_owned(), rest) };
    let (document, shown) = rest.split_once(&end).expect("the document ends");
    (format!("{first}\n{document}{end}"), shown)
}

/// Its lines without what varies.
fn masked(text: &str) -> Vec<String> {
    let mut text = text.to_owned();
    for (pattern, name) in VARIES {
        let pattern = Regex::new(pattern).expect("it is one");
        text = pattern.replace_all(&text, name).into_owned();
    }
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    text.lines().map(words).filter(|line| !line.is_empty()).collect()
}
