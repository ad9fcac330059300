//! The web page: totals and requests of the ledger, the last calls, and the list of simulations.

use std::fmt::Write;

use super::{
    Sandbox,
    ledger::{CaptureProgress, LedgerEntry},
    simulation::SIMULATIONS,
};
use crate::{
    domain::money::{Currency, major},
    sanitize,
};

/// The maximum number of rows in a table.
const ROWS_MAX: usize = 100;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:70em;\
padding:0 1em}\
table{border-collapse:collapse;width:100%;margin-bottom:2em}\
td,th{text-align:left;padding:.2em .8em .2em 0;border-bottom:1px solid #ddd;\
overflow-wrap:anywhere}\
.bad{color:#b00020;font-weight:bold}code{background:#f3f3f3}";

pub(super) fn render(sandbox: &Sandbox) -> String {
    let mut page = String::new();
    write(sandbox, &mut page).unwrap_or_default();
    page
}

fn write(sandbox: &Sandbox, page: &mut String) -> std::fmt::Result {
    write!(
        page,
        "<!doctype html><html lang=en><meta charset=utf-8><meta http-equiv=refresh content=5>\
         <title>Sandbox of the capture gateway</title><style>{STYLE}</style>\
         <h1>Sandbox of the capture gateway</h1><p>No money moves here. As JSON: \
         <a href=/sandbox/ledger>ledger</a>, <a href=/sandbox/calls>calls</a>, \
         <a href=/sandbox/keys>keys</a>.</p>"
    )?;
    totals(sandbox, page)?;
    requests(sandbox, page)?;
    calls(sandbox, page)?;
    simulations(page)
}

fn totals(sandbox: &Sandbox, page: &mut String) -> std::fmt::Result {
    let (totals, count, twice) = sandbox.with_state(|state| {
        let ledger = &state.ledger;
        (ledger.totals(), ledger.movements.len(), ledger.captured_twice().len())
    });
    let overlaps = sandbox.recorder.read(|recorded| recorded.overlaps);
    write!(page, "<h2>Captured</h2><table><tr><td>captures<td>{count}")?;
    for (code, sum) in totals {
        let sum = Currency::from_code(code).map(|currency| major(currency, sum).to_string());
        write!(page, "<tr><td>{code}<td>{}", sum.unwrap_or_default())?;
    }
    for (name, count) in [
        ("ids captured twice", u64::try_from(twice).unwrap_or(u64::MAX)),
        ("overlapping capture calls of one payment", overlaps),
    ] {
        let class = if count == 0 { "" } else { " class=bad" };
        write!(page, "<tr><td>{name}<td{class}>{count}")?;
    }
    write!(page, "</table>")
}

fn requests(sandbox: &Sandbox, page: &mut String) -> std::fmt::Result {
    let rows: Vec<String> = sandbox.with_state(|state| {
        let ledger = &state.ledger;
        let requests = ledger.payments.values().rev().flat_map(|payment| payment.requests.iter());
        let known = requests.filter_map(|id| ledger.requests.get(id)).take(ROWS_MAX);
        let is_last = |request: &LedgerEntry| {
            let payment = ledger.payments.get(&request.asked.payment_id);
            payment.is_some_and(|payment| payment.final_capture.as_ref() == Some(&request.asked.id))
        };
        known
            .map(|request| {
                let progress = match &request.state {
                    CaptureProgress::Unseen => "not executed".to_owned(),
                    CaptureProgress::InProcess { .. } => "in process".to_owned(),
                    CaptureProgress::Captured(_) if is_last(request) => {
                        "captured, FINAL".to_owned()
                    }
                    CaptureProgress::Captured(_) => "captured".to_owned(),
                    CaptureProgress::Failed(code) => format!("failed: {code}"),
                };
                row(&[
                    &request.asked.payment_id,
                    &request.asked.id,
                    &request.asked.amount.to_string(),
                    &progress,
                    &request.posts.to_string(),
                ])
            })
            .collect()
    });
    let head = row(&["paymentId", "captureRequestId", "amount", "state", "posts"]);
    let note = "After a captured FINAL, a new id of the payment gets ORDER_STATUS_INVALID. That is \
        inferred: the gateway's reply in this case is not documented.";
    write!(page, "<h2>Payments</h2><p>{note}</p><table>{head}{}</table>", rows.concat())
}

fn calls(sandbox: &Sandbox, page: &mut String) -> std::fmt::Result {
    let rows: Vec<String> = sandbox.recorder.read(|recorded| {
        let last = recorded.calls.iter().rev().take(ROWS_MAX);
        last.map(|call| {
            let id = call.capture_request_id.as_deref().unwrap_or_default();
            row(&[&call.at, call.call, &call.payment_id, id, &call.answer])
        })
        .collect()
    });
    let head = row(&["at", "call", "paymentId", "captureRequestId", "answer"]);
    write!(page, "<h2>Last calls</h2><table>{head}{}</table>", rows.concat())
}

fn simulations(page: &mut String) -> std::fmt::Result {
    let rows: String = SIMULATIONS
        .iter()
        .map(|simulation| row(&[&format!("sim-{}-…", simulation.name), simulation.does]))
        .collect();
    let codes = row(&["sim-RISK_REJECT-…", "this result code, or any other, for every capture"]);
    write!(page, "<h2>Payment ids that cause a fault</h2><table>{rows}{codes}</table>")
}

fn row(cells: &[&str]) -> String {
    let cells: String = cells.iter().map(|cell| format!("<td>{}", escape(cell))).collect();
    format!("<tr>{cells}")
}

/// Escapes text for HTML. Ids come from callers and may contain anything.
fn escape(text: &str) -> String {
    let text = sanitize::text(text);
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_of_callers_is_escaped() {
        assert_eq!(row(&["<b>&\"\u{202e}"]), "<tr><td>&lt;b&gt;&amp;&quot;\\u{202e}");
    }
}
