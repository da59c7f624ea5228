//! What a command reads.

use std::{io::Read as _, path::Path};

use anyhow::Context as _;

/// What is in `file`; `-` is standard input.
pub(crate) fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    let mut content = Vec::new();
    if file == Path::new("-") {
        std::io::stdin().lock().read_to_end(&mut content)?;
    } else {
        content = std::fs::read(file).with_context(|| file.display().to_string())?;
    }
    Ok(content)
}

/// As [`read`], of what has to be text.
pub(crate) fn read_text(file: &Path) -> anyhow::Result<String> {
    String::from_utf8(read(file)?).with_context(|| format!("{} is no text", file.display()))
}
