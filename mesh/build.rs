//! Compiles the kernel's own messages into OUT_DIR, with protox instead of protoc, and
//! tells the build scripts of crates that stand on this one where their `.proto` files are:
//! `DEP_MESH_PROTO`.

use std::{env, error::Error, fs, path::PathBuf};

/// Those of ../proto that are the kernel's own: what it says, and what any service's
/// messages may say of themselves.
const OWN: [&str; 5] = [
    "omnibridge/audit/v1/event.proto",
    "omnibridge/common/v1/common.proto",
    "omnibridge/common/v1/options.proto",
    "omnibridge/events/v1/cloud_event.proto",
    "omnibridge/lifecycle/v1/lifecycle.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    let root = fs::canonicalize("../proto")?;
    for file in OWN {
        // By both: what is told below holds for this checkout only.
        println!("cargo:rerun-if-changed=../proto/{file}");
        println!("cargo:rerun-if-changed={}", root.join(file).display());
    }
    println!("cargo:proto={}", root.display());
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let mut compiler = protox::Compiler::new([root])?;
    compiler.include_imports(true).open_files(OWN)?;
    // With the options of our own, which prost's types don't keep.
    fs::write(out.join("descriptors.bin"), compiler.encode_file_descriptor_set())?;
    // Type names put an event's schema into its attributes.
    prost_build::Config::new()
        .enable_type_names()
        .bytes(["."])
        .include_file("messages.rs")
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
