//! The bare loop: the smallest program that consumes, signs, posts, publishes with confirms and
//! acks. It has no lease, no retry, no check of the reply's signature, no metrics and no log. It
//! uses one thread, because several threads take more CPU.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use capture_worker::gateway::signing::{SigningKey, signature_header};
use futures_util::StreamExt as _;
use lapin::{
    BasicProperties, Connection, ConnectionProperties,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions,
        ConfirmSelectOptions,
    },
    types::FieldTable,
};

use crate::gateway::PATH;

/// The environment variables that configure the bare loop.
pub(crate) const SETTINGS: [&str; 6] = [
    "BARE_BROKER_URL",
    "BARE_PREFIX",
    "BARE_PREFETCH",
    "BARE_GATEWAY",
    "BARE_CLIENT_ID",
    "BARE_KEY",
];

/// Runs until it is killed.
pub(crate) fn run() -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(consume())
}

async fn consume() -> anyhow::Result<()> {
    let mut settings = Vec::new();
    for name in SETTINGS {
        settings.push(std::env::var(name).with_context(|| format!("{name} is not set"))?);
    }
    let [broker_url, prefix, prefetch, gateway, client_id, key] =
        <[String; 6]>::try_from(settings).map_err(|_| anyhow::anyhow!("six settings needed"))?;
    let connection = Connection::connect(&broker_url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let publisher = connection.create_channel().await?;
    publisher.confirm_select(ConfirmSelectOptions::default()).await?;
    channel.basic_qos(prefetch.parse()?, BasicQosOptions::default()).await?;
    let queue = format!("{prefix}.jobs");
    let (options, arguments) = (BasicConsumeOptions::default(), FieldTable::default());
    let mut jobs =
        channel.basic_consume(queue.as_str().into(), "bare".into(), options, arguments).await?;
    let http =
        reqwest::Client::builder().tcp_nodelay(true).timeout(Duration::from_secs(8)).build()?;
    let key: &SigningKey = Box::leak(Box::new(SigningKey::parse(&key)?));
    let url: &str = format!("{gateway}{PATH}").leak();
    let client_id: &str = client_id.leak();
    let results: &str = format!("{prefix}.results").leak();
    while let Some(job) = jobs.next().await {
        let job = job?;
        let (http, channel, publisher) = (http.clone(), channel.clone(), publisher.clone());
        tokio::spawn(async move {
            let time = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default()
                .as_millis()
                .to_string();
            let signature = key.sign(PATH, client_id, &time, &job.data);
            let answer = http
                .post(url)
                .header("content-type", "application/json; charset=UTF-8")
                .header("client-id", client_id)
                .header("request-time", time)
                .header("signature", signature_header(1, &signature))
                .body(job.data)
                .send()
                .await?
                .bytes()
                .await?;
            let (options, properties) =
                (BasicPublishOptions::default(), BasicProperties::default());
            let properties = properties.with_delivery_mode(2);
            // Concurrent publishes on one channel may get each other's confirms. That is harmless
            // here because all confirms are acks.
            publisher
                .basic_publish(results.into(), "captured".into(), options, &answer, properties)
                .await?
                .await?;
            channel.basic_ack(job.delivery_tag, BasicAckOptions::default()).await?;
            anyhow::Ok(())
        });
    }
    Ok(())
}
