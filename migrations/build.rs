//! Writes a module for each file of `src/`, so that a new one needs no line elsewhere.

use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=src");
    let mut files = Vec::new();
    for entry in fs::read_dir("src")? {
        files.push(fs::canonicalize(entry?.path())?);
    }
    files.sort();
    let modules = files.iter().filter_map(|file| {
        let name = file.file_stem()?.to_str().filter(|name| *name != "lib")?;
        Some(format!("#[path = {file:?}]\npub mod {name};\n"))
    });
    let out = PathBuf::from(env::var("OUT_DIR")?).join("modules.rs");
    fs::write(out, modules.collect::<String>())?;
    Ok(())
}
