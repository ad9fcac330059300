//! `capture-worker submit`: validates jobs and publishes all of them or none.

use std::{
    fmt::Write,
    io::Read,
    path::{Path, PathBuf},
};

use futures_util::{StreamExt, stream};
use serde_json::value::RawValue;

use super::{
    Exit,
    desk::plain,
    has_failed, print_error, print_json, print_line,
    settings::{self, Service},
};
use crate::{
    broker::{BrokerOptions, Session},
    domain::job::{Job, forward::ForwardFields, text_of},
};

/// The largest input, in bytes. All of it is held in memory, because every job is validated before
/// the first one is published.
const INPUT_BYTES_MAX: u64 = 1 << 30;
/// How many publishes may wait for their confirms at the same time.
const CONCURRENT: usize = 128;

#[derive(clap::Args)]
pub(super) struct Submit {
    /// File of jobs: one JSON object, a JSON array of objects, or one object after the other (JSON
    /// lines). Standard input if it is absent or `-`
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// Print one JSON document with the number of jobs and of confirms
    #[arg(long)]
    json: bool,
}

impl Submit {
    pub(super) async fn run(self, config: Option<&Path>) -> Exit {
        let settings = match settings::load(config, &[Service::Broker]) {
            Ok(settings) => settings,
            Err(exit) => return exit,
        };
        let broker = match settings::broker_options(&settings) {
            Ok(broker) => broker,
            Err(errors) => {
                errors.iter().for_each(|error| print_error(&format!("error: {error}")));
                return Exit::Usage;
            }
        };
        let forward = settings.gateway.forward_fields();
        let jobs = match self.read().and_then(|text| jobs(&text, &forward)) {
            Ok(jobs) => jobs,
            Err(error) => {
                print_error(&format!("error: {error}"));
                return Exit::Failed;
            }
        };
        self.publish(&broker, jobs).await
    }

    fn read(&self) -> Result<String, String> {
        let mut bytes = Vec::new();
        let (name, read) = match &self.file {
            Some(file) if file.as_os_str() != "-" => (
                file.display().to_string(),
                std::fs::File::open(file)
                    .and_then(|file| file.take(INPUT_BYTES_MAX).read_to_end(&mut bytes)),
            ),
            _ => (
                "standard input".to_owned(),
                std::io::stdin().take(INPUT_BYTES_MAX).read_to_end(&mut bytes),
            ),
        };
        let length =
            read.map_err(|error| format!("nothing was published: cannot read {name}: {error}"))?;
        if u64::try_from(length).unwrap_or(u64::MAX) == INPUT_BYTES_MAX {
            return Err(format!(
                "nothing was published: {name}: the input is 1 GiB or more: split it"
            ));
        }
        text_of(&bytes)
            .map(str::to_owned)
            .map_err(|error| format!("nothing was published: {name}: {error}"))
    }

    async fn publish(&self, broker: &BrokerOptions, jobs: Vec<String>) -> Exit {
        let session = match Session::open(broker).await {
            Ok(session) => session,
            Err(error) => {
                print_error(&format!(
                    "error: nothing was published: cannot use the broker: {error}"
                ));
                return Exit::Failed;
            }
        };
        let total = jobs.len();
        let published: Vec<_> = stream::iter(&jobs)
            .map(|job| session.submit(job.as_bytes()))
            .buffered(CONCURRENT)
            .collect()
            .await;
        session.close().await;
        let failed: Vec<_> = published.iter().flat_map(|done| done.as_ref().err()).collect();
        let confirmed = total - failed.len();
        if self.json {
            print_json(&serde_json::json!({"jobs": total, "confirmed": confirmed}));
        } else {
            print_line(&format!("{confirmed} of {total} jobs are in the queue"));
        }
        if has_failed() {
            print_error(&format!("{confirmed} of {total} jobs are in the queue"));
        }
        match failed.first() {
            None => Exit::Done,
            Some(error) => {
                print_error(&format!(
                    "error: {} of {total} jobs were not confirmed: {error}. Submit all of them \
                     again: that is safe, because a captureRequestId is captured once",
                    failed.len()
                ));
                Exit::Failed
            }
        }
    }
}

/// The body of every job in the input, byte for byte; or an error that names every invalid job.
fn jobs(text: &str, forward: &ForwardFields) -> Result<Vec<String>, String> {
    let mut bodies: Vec<String> = Vec::new();
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<&RawValue>();
    loop {
        let at = values.byte_offset();
        match values.next() {
            None => break,
            Some(Err(error)) => return Err(format!("nothing was published: the input: {error}")),
            Some(Ok(value)) if value.get().starts_with('[') => {
                let list: Vec<&RawValue> = serde_json::from_str(value.get()).map_err(|error| {
                    format!("nothing was published: the input: array at byte {at}: {error}")
                })?;
                bodies.extend(list.into_iter().map(|job| job.get().to_owned()));
            }
            Some(Ok(value)) => bodies.push(value.get().to_owned()),
        }
    }
    if bodies.is_empty() {
        return Err("nothing was published: the input holds no job".into());
    }
    let mut wrong = String::new();
    for (n, body) in bodies.iter().enumerate() {
        let job = Job::parse_with(body.as_bytes(), forward).and_then(Job::complete);
        if let Err(malformed) = job {
            let id =
                malformed.subject.capture_request_id.as_deref().map_or_else(|| "?".into(), plain);
            let reason = plain(&malformed.reason.to_string());
            // Writing to a string cannot fail.
            write!(wrong, "\n  job {} ({id}): {reason}", n + 1).unwrap_or_default();
        }
    }
    if wrong.is_empty() {
        Ok(bodies)
    } else {
        Err(format!("nothing was published: these jobs are invalid:{wrong}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jobs(text: &str) -> Result<Vec<String>, String> {
        super::jobs(text, &ForwardFields::default())
    }

    const JOB: &str = concat!(
        r#"{"captureRequestId":"c","paymentId":"p","#,
        r#""captureAmount":{"currency":"HKD","value":"1"}}"#
    );

    #[test]
    fn one_job_an_array_and_json_lines_are_read_byte_for_byte() {
        assert_eq!(jobs(JOB).unwrap(), [JOB]);
        assert_eq!(jobs(&format!("[{JOB}, {JOB}]")).unwrap(), [JOB, JOB]);
        assert_eq!(jobs(&format!("{JOB}\n{JOB}\n\n")).unwrap(), [JOB, JOB]);
    }

    #[test]
    fn one_invalid_job_stops_all_and_every_invalid_one_is_named() {
        let error = jobs(&format!("{JOB}\n{{}}\n{{\"captureRequestId\":\"x\"}}")).unwrap_err();
        assert!(error.contains("job 2 (?): `captureRequestId` is missing"), "{error}");
        assert!(error.contains("job 3 (x): `paymentId` is missing"), "{error}");
        let wrong =
            |fields: &str| jobs(&JOB.replacen('{', &format!("{{{fields},"), 1)).unwrap_err();
        let error = wrong(r#""captureType":"LAST""#);
        assert!(error.contains("job 1 (c): `captureType` must be"), "{error}");
        let error = wrong(r#""goods":[],"goods":[]"#);
        assert!(error.contains("job 1 (c): `goods` must stand only once"), "{error}");
        assert!(jobs("").is_err());
        assert!(jobs("{").is_err());
    }
}
