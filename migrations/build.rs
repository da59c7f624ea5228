//! Writes a module for each file of `src/`, so that a new one needs no line elsewhere.

use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = fs::canonicalize("src")?;
    // By both: what is written below holds for this checkout only.
    println!("cargo:rerun-if-changed=src");
    println!("cargo:rerun-if-changed={}", folder.display());
    let mut modules = Vec::new();
    for entry in fs::read_dir(&folder)? {
        let file = entry?.path();
        let name = file.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
        let is_module = file.is_file() && file.extension().is_some_and(|e| e == "rs");
        if is_module && name != "lib" && !name.starts_with('.') {
            modules.push(format!("#[path = {file:?}]\npub mod {name};\n"));
        }
    }
    modules.sort();
    fs::write(PathBuf::from(env::var("OUT_DIR")?).join("modules.rs"), modules.concat())?;
    Ok(())
}
