//! Descriptors of a running service, by gRPC's reflection v1.

use anyhow::{Context as _, bail};
use mesh::client::Channel;
use prost::Message as _;
use prost_reflect::{DescriptorPool, ServiceDescriptor};
use prost_types::FileDescriptorProto;
use tokio_stream::StreamExt as _;
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

/// How many files one service may need.
const MAX_FILES: usize = 512;

/// The descriptor of the gRPC service `name`, with all that it uses.
pub(super) async fn service(channel: Channel, name: &str) -> anyhow::Result<ServiceDescriptor> {
    let mut client = ServerReflectionClient::new(channel);
    let mut files: Vec<FileDescriptorProto> = Vec::new();
    let mut wanted = vec![MessageRequest::FileContainingSymbol(name.to_owned())];
    while let Some(request) = wanted.pop() {
        for file in ask(&mut client, request).await? {
            if files.iter().any(|known| known.name == file.name) {
                continue;
            }
            if files.len() == MAX_FILES {
                bail!("{name} needs more than {MAX_FILES} files");
            }
            let missing = file.dependency.iter().filter(|dependency| {
                !files.iter().any(|known| known.name.as_ref() == Some(dependency))
            });
            wanted.extend(missing.cloned().map(MessageRequest::FileByFilename));
            files.push(file);
        }
    }
    let mut pool = DescriptorPool::new();
    pool.add_file_descriptor_protos(files)?;
    pool.get_service_by_name(name).with_context(|| format!("there is no gRPC service `{name}`"))
}

async fn ask(
    client: &mut ServerReflectionClient<Channel>,
    request: MessageRequest,
) -> anyhow::Result<Vec<FileDescriptorProto>> {
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(request) };
    let answers = client.server_reflection_info(tokio_stream::once(request)).await;
    let mut answers = answers.map_err(|status| super::failed(&status))?.into_inner();
    let answer = answers.next().await.context("reflection answered nothing")?;
    match answer.map_err(|status| super::failed(&status))?.message_response {
        Some(MessageResponse::FileDescriptorResponse(files)) => files
            .file_descriptor_proto
            .iter()
            .map(|file| Ok(FileDescriptorProto::decode(file.as_slice())?))
            .collect(),
        Some(MessageResponse::ErrorResponse(error)) => bail!("{}", error.error_message),
        _ => bail!("reflection answered something else than files"),
    }
}
