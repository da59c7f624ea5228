//! Compiles proto/ into OUT_DIR, with protox instead of protoc: building needs
//! no program that Cargo doesn't bring.

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
};

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new("proto");
    let mut files = Vec::new();
    collect(&root.join("omnibridge"), &mut files)?;
    files.sort();

    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let mut compiler = protox::Compiler::new([root])?;
    compiler.include_imports(true).open_files(&files)?;
    // With the options of our own, which prost's types don't keep.
    fs::write(out.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;
    // Type names put an event's schema into its attributes.
    let mut config = prost_build::Config::new();
    config.enable_type_names().bytes(["."]);
    // The kernel's own messages are mesh's.
    for name in
        ["common.v1", "events.v1", "lifecycle.v1", "audit.v1.AuditEvent", "audit.v1.Outcome"]
    {
        let path = name.replace('.', "::");
        config.extern_path(format!(".omnibridge.{name}"), format!("::mesh::messages::{path}"));
    }
    tonic_prost_build::configure()
        .build_transport(false)
        // The modules, by package.
        .include_file("api.rs")
        .compile_fds_with_config(compiler.file_descriptor_set(), config)?;
    Ok(())
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|e| e == "proto") {
            files.push(path);
        }
    }
    Ok(())
}
