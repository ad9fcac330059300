//! A generated day of shipments, and the expected result of each.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::sandbox::Script;

/// An amount in the currency's smallest unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Money {
    pub(crate) currency: &'static str,
    pub(crate) value: u64,
}

/// The currencies of the day, with their number of decimals.
const CURRENCIES: [(&str, u32); 8] = [
    ("HKD", 2),
    ("JPY", 0),
    ("EUR", 2),
    ("IDR", 2),
    ("USD", 2),
    ("KRW", 0),
    ("SGD", 2),
    ("GBP", 2),
];

/// The codes of the gateway's refusals, with the class of the dead letter that each must become.
const REFUSALS: [(&str, &str); 10] = [
    ("AUTH_EXPIRED", "authorization"),
    ("ORDER_IS_CANCELED", "order"),
    ("CAPTURE_AMOUNT_EXCEED_AUTH_LIMIT", "limit"),
    ("CURRENCY_NOT_SUPPORT", "contract"),
    ("PARAM_ILLEGAL", "request"),
    ("RISK_REJECT", "risk"),
    ("USER_BALANCE_NOT_ENOUGH", "payer"),
    ("USER_STATUS_ABNORMAL", "payer"),
    ("PROCESS_FAIL", "provider"),
    ("MERCHANT_ON_HOLIDAY", "unknown_code"),
];

/// Replies that leave the result unknown at first. Each of these jobs is captured once in the end.
const DOUBTS: [Script; 6] = [
    Script::InProcess,
    Script::UnknownException,
    Script::AnswerLost,
    Script::ServerError,
    Script::Garbage,
    Script::Unsigned,
];

/// The `captureType` of a job: whether more captures of its payment follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CaptureType {
    /// No value: the only capture of its payment, which the gateway takes as final.
    Absent,
    /// More captures of its payment follow.
    NonFinal,
    /// The last of several. It is submitted when the others have their results.
    Final,
}

/// The result that a job must have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    Captured,
    Dead(&'static str),
}

/// One job to submit.
#[derive(Clone, Debug)]
pub(crate) struct Shipment {
    pub(crate) id: String,
    pub(crate) payment: String,
    pub(crate) money: Money,
    pub(crate) expected: Expected,
    pub(crate) capture_type: CaptureType,
}

/// Everything that is submitted.
#[derive(Clone, Debug)]
pub(crate) struct Day {
    pub(crate) shipments: Vec<Shipment>,
    /// Jobs that are published once more, as publishers do after a lost confirm.
    pub(crate) copies: Vec<Shipment>,
    /// The id of a malformed job.
    pub(crate) malformed: String,
}

impl Day {
    /// Generates the same day every time, except for the ids, which contain the name of the run.
    pub(crate) fn new(run: &str) -> Self {
        let mut day = Shipments { run: run.to_owned(), shipments: Vec::new(), payments: 0 };
        for _ in 0..220 {
            day.pay(Script::Capture, Expected::Captured, 1);
        }
        for payment in 0..18 {
            day.pay(Script::Capture, Expected::Captured, 5 + payment % 6);
        }
        for (code, class) in REFUSALS.into_iter().cycle().take(24) {
            day.pay(Script::Refuse(code), Expected::Dead(class), 1);
        }
        for doubt in DOUBTS.into_iter().cycle().take(24) {
            day.pay(doubt, Expected::Captured, 1);
        }
        let mut shipments = day.shipments;
        shuffle(&mut shipments);
        let first = shipments.iter().filter(|shipment| shipment.is_first());
        let copies = first.step_by(33).cloned().collect();
        Self { shipments, copies, malformed: format!("ship-{run}-malformed") }
    }

    /// The jobs to submit first: all except the final captures of payments that are shipped in
    /// parts.
    pub(crate) fn first(&self) -> Vec<&Shipment> {
        self.shipments.iter().filter(|shipment| shipment.is_first()).collect()
    }

    /// The final captures of payments whose other parts have ended.
    pub(crate) fn due(&self, has_ended: impl Fn(&str) -> bool) -> Vec<&Shipment> {
        let is_open = |shipment: &&Shipment| shipment.is_first() && !has_ended(&shipment.id);
        let open: BTreeSet<&str> =
            self.shipments.iter().filter(is_open).map(|open| open.payment.as_str()).collect();
        let last = self.shipments.iter().filter(|shipment| !shipment.is_first());
        last.filter(|last| !open.contains(last.payment.as_str())).collect()
    }

    /// A job whose amount is a number instead of a string.
    pub(crate) fn malformed_job(&self) -> Value {
        json!({
            "captureRequestId": self.malformed,
            "paymentId": "pay-malformed",
            "captureAmount": {"currency": "HKD", "value": 12990},
        })
    }

    /// The number of deliveries. Each has at least one result.
    pub(crate) fn deliveries(&self) -> usize {
        self.shipments.len() + self.copies.len() + 1
    }

    /// The expected result of each id.
    pub(crate) fn expected(&self) -> BTreeMap<&str, Expected> {
        let malformed = (self.malformed.as_str(), Expected::Dead("malformed"));
        let shipments =
            self.shipments.iter().map(|shipment| (shipment.id.as_str(), shipment.expected));
        shipments.chain([malformed]).collect()
    }

    /// The number of payments that are captured in several parts.
    pub(crate) fn final_captures(&self) -> usize {
        self.shipments.iter().filter(|shipment| !shipment.is_first()).count()
    }

    pub(crate) fn payments(&self) -> usize {
        let payments = self.shipments.iter().map(|shipment| &shipment.payment);
        payments.collect::<BTreeSet<_>>().len()
    }
}

/// The input of `capture-worker submit`: one JSON document per line.
pub(crate) fn json_lines(shipments: &[&Shipment]) -> String {
    shipments.iter().map(|shipment| format!("{}\n", shipment.job())).collect()
}

impl Shipment {
    fn is_first(&self) -> bool {
        self.capture_type != CaptureType::Final
    }

    /// Half of the jobs give the amount in the smallest unit, half in major units, because
    /// publishers use both.
    pub(crate) fn job(&self) -> Value {
        let Money { currency, value } = self.money;
        let (field, value) = if value % 2 == 0 {
            ("captureAmount", value.to_string())
        } else {
            ("amount", major_units(currency, u128::from(value)))
        };
        let capture_type = match self.capture_type {
            CaptureType::Absent => None,
            CaptureType::NonFinal => Some("NON_FINAL"),
            CaptureType::Final => Some("FINAL"),
        };
        json!({
            "captureRequestId": self.id,
            "paymentId": self.payment,
            field: {"currency": currency, "value": value},
            // The worker treats null as absent.
            "captureType": capture_type,
            "metadata": {"warehouse": "HKG-2"},
        })
    }
}

/// `12990` of HKD as `129.90`.
pub(crate) fn major_units(currency: &str, value: u128) -> String {
    let decimals = CURRENCIES.iter().find(|(name, _)| *name == currency).map_or(2, |found| found.1);
    let unit = 10_u128.pow(decimals);
    match usize::try_from(decimals) {
        Ok(width) if width > 0 => format!("{}.{:0width$}", value / unit, value % unit),
        _ => value.to_string(),
    }
}

struct Shipments {
    run: String,
    shipments: Vec<Shipment>,
    payments: usize,
}

impl Shipments {
    /// Adds a payment that is shipped in this many parts.
    fn pay(&mut self, script: Script, expected: Expected, parts: usize) {
        let payment = script.payment_id(&self.run, self.payments);
        let (currency, _) = CURRENCIES.get(self.payments % CURRENCIES.len()).unwrap_or(&("HKD", 2));
        self.payments += 1;
        for part in 1..=parts {
            let capture_type = match (parts, part) {
                (1, _) => CaptureType::Absent,
                (_, last) if last == parts => CaptureType::Final,
                _ => CaptureType::NonFinal,
            };
            let number = self.shipments.len();
            let spread = u64::try_from(number * 7919 % 90_000).unwrap_or_default() + 101;
            // ISO 4217 gives the rupiah two decimals, but the gateway accepts whole rupiah only.
            let value = if *currency == "IDR" { spread * 100 } else { spread };
            self.shipments.push(Shipment {
                id: format!("ship-{}-{number:04}", self.run),
                payment: payment.clone(),
                money: Money { currency, value },
                expected,
                capture_type,
            });
        }
    }
}

/// Mixes the parts of a payment with other jobs, in the same order every time.
fn shuffle(shipments: &mut [Shipment]) {
    let mut state = 42_usize;
    for last in (1..shipments.len()).rev() {
        state = state.wrapping_mul(1_103_515_245).wrapping_add(12_345) % (1 << 31);
        shipments.swap(last, (state >> 8) % (last + 1));
    }
}
