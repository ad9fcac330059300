//! Builds the gateway's replies in the form in which the program reads them.

use std::time::Duration;

use capture_worker::domain::{
    capture::{
        family::fresh_id,
        reply::{
            Answer, CaptureBody, GatewayResult, InquiryBody, NoAnswer, Reply, Signature, Status,
            Transaction,
        },
    },
    money::Money,
};

use crate::domain::{DENIED, Inquiry, NO_WORD, PARENT, Said, Shown, WORDS, Word};

fn answer<B>(signature: Signature, word: Word, status: &str, body: B) -> Reply<B> {
    let code = if word == NO_WORD { "SUCCESS" } else { WORDS[usize::from(word)].0 };
    let result = GatewayResult { status: Status::of(status), code: code.into(), message: None };
    Reply::Answered(Answer { signature, result, retry_after: None, body })
}

pub(crate) fn capture_reply(said: Said) -> Reply<CaptureBody> {
    let about = CaptureBody { capture_request_id: Some("c".into()), ..CaptureBody::default() };
    match said {
        Said::Captured => answer(Signature::Good, NO_WORD, "S", about),
        Said::Failed(word) => answer(Signature::Good, word, "F", about),
        Said::Unsure(word) => answer(Signature::Good, word, "U", about),
        Said::Unsigned => answer(Signature::Missing, DENIED, "F", about),
        Said::Nothing => Reply::NoAnswer(NoAnswer::TimedOut(Duration::from_secs(1))),
        Said::NotSent => Reply::NotSent(String::new()),
    }
}

pub(crate) fn inquiry_reply(inquiry: Inquiry) -> Reply<InquiryBody> {
    let item = |id: &str, status: &str, word: Option<Word>, value: &str| Transaction {
        kind: Some("CAPTURE".into()),
        request_id: Some(id.into()),
        status: Some(status.into()),
        result: word.map(|word| GatewayResult {
            status: Status::of("F"),
            code: WORDS[usize::from(word)].0.into(),
            message: None,
        }),
        amount: Money::from_smallest("HKD", value).ok().map(Ok),
        ..Transaction::default()
    };
    let mut transactions = match inquiry.shown {
        Shown::Success => vec![item("c", "SUCCESS", None, "100")],
        Shown::OtherAmount => vec![item("c", "SUCCESS", None, "200")],
        Shown::Fail(word) => vec![item("c", "FAIL", Some(word), "100")],
        Shown::Processing => vec![item("c", "PROCESSING", None, "100")],
        Shown::NoSuchCapture => Vec::new(),
        Shown::Nothing => {
            return Reply::NoAnswer(NoAnswer::TimedOut(Duration::from_secs(1)));
        }
    };
    let child = fresh_id("c");
    if inquiry.later_lives {
        transactions.push(item(&fresh_id(&child), "SUCCESS", None, "100"));
    }
    if inquiry.child_lives {
        transactions.push(item(&child, "SUCCESS", None, "100"));
    }
    if inquiry.forebear_lives {
        transactions.push(item(PARENT, "SUCCESS", None, "100"));
    }
    let body = InquiryBody {
        payment_id: Some("p".into()),
        transactions: Some(transactions),
        ..InquiryBody::default()
    };
    answer(Signature::Good, NO_WORD, "S", body)
}
