//! The W3C trace context that travels with a job, so that all its deliveries belong to one trace.

/// The longest `tracestate` that is carried on, in bytes. W3C asks to keep at least 512.
pub const TRACESTATE_BYTES_MAX: usize = 4096;

/// A valid `traceparent` with its `tracestate`.
///
/// The format is <https://www.w3.org/TR/trace-context/#traceparent-header>.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    traceparent: String,
    tracestate: Option<String>,
}

impl TraceContext {
    /// Reads the two headers. `None`: the `traceparent` is not valid, so there is no trace. A
    /// `tracestate` that is too long is dropped.
    #[must_use]
    pub fn read(traceparent: &str, tracestate: Option<&str>) -> Option<Self> {
        let fields: Vec<&str> = traceparent.split('-').collect();
        let [version, trace_id, span_id, flags, later @ ..] = fields.as_slice() else {
            return None;
        };
        let is_known = match *version {
            "ff" => false,
            "00" => later.is_empty(),
            _ => true,
        };
        let are_valid = is_hex(version, 2)
            && is_hex(trace_id, 32)
            && is_hex(span_id, 16)
            && is_hex(flags, 2)
            && !is_zero(trace_id)
            && !is_zero(span_id);
        (is_known && are_valid).then(|| Self {
            traceparent: traceparent.to_owned(),
            tracestate: tracestate
                .filter(|state| !state.is_empty() && state.len() <= TRACESTATE_BYTES_MAX)
                .map(str::to_owned),
        })
    }

    /// The value of the `traceparent` header.
    #[must_use]
    pub fn traceparent(&self) -> &str {
        &self.traceparent
    }

    /// The value of the `tracestate` header.
    #[must_use]
    pub fn tracestate(&self) -> Option<&str> {
        self.tracestate.as_deref()
    }

    /// The trace id: 32 hexadecimal digits.
    #[must_use]
    pub fn trace_id(&self) -> &str {
        self.traceparent.split('-').nth(1).unwrap_or_default()
    }
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_zero(text: &str) -> bool {
    text.bytes().all(|b| b == b'0')
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_context_is_read_as_w3c_defines_it() {
        let context = TraceContext::read(PARENT, Some("vendor=1")).unwrap();
        assert_eq!(context.trace_id(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!((context.traceparent(), context.tracestate()), (PARENT, Some("vendor=1")));
        // A later version may have more fields.
        assert!(TraceContext::read(&format!("01{}-more", &PARENT[2..]), None).is_some());
    }

    #[test]
    fn an_invalid_traceparent_is_no_context() {
        let zero_trace = "00-00000000000000000000000000000000-b7ad6b7169203331-01";
        let zero_span = "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01";
        let upper = PARENT.to_uppercase();
        let longer = format!("{PARENT}-more");
        let forbidden = format!("ff{}", &PARENT[2..]);
        for text in ["", "00", "00-1-2-3", zero_trace, zero_span, &upper, &longer, &forbidden] {
            assert_eq!(TraceContext::read(text, None), None, "{text}");
        }
    }

    #[test]
    fn a_tracestate_that_is_too_long_is_dropped() {
        let long = "x".repeat(TRACESTATE_BYTES_MAX + 1);
        let context = TraceContext::read(PARENT, Some(&long)).unwrap();
        assert_eq!(context.tracestate(), None);
    }
}
