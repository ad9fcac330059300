//! Raw AMQP 0.9.1 frames, for messages that no client library sends.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, ensure};

const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const FRAME_END: u8 = 0xce;
/// The property flags of a message that has headers and a delivery mode.
const HEADERS_AND_DELIVERY_MODE: u16 = 0x3000;

/// Publishes a message with these bytes as its header table, and waits until the broker has read
/// it.
pub fn publish(port: u16, exchange: &str, table: &[u8], body: &[u8]) -> anyhow::Result<()> {
    let mut broker =
        TcpStream::connect((Ipv4Addr::LOCALHOST, port)).context("connect to the broker")?;
    broker.set_read_timeout(Some(Duration::from_secs(20)))?;
    broker.write_all(b"AMQP\0\0\x09\x01")?;
    expect(&mut broker, (10, 10))?;
    let login = [long(b""), short("PLAIN"), long(b"\0guest\0guest"), short("en_US")].concat();
    send(&mut broker, METHOD, 0, &method((10, 11), &login))?;
    let tune = expect(&mut broker, (10, 30))?;
    send(&mut broker, METHOD, 0, &method((10, 31), tune.get(..8).context("tune")?))?;
    send(&mut broker, METHOD, 0, &method((10, 40), &[short("/"), short(""), vec![0]].concat()))?;
    expect(&mut broker, (10, 41))?;
    send(&mut broker, METHOD, 1, &method((20, 10), &short("")))?;
    expect(&mut broker, (20, 11))?;
    let address = [vec![0, 0], short(exchange), short("raw"), vec![0]].concat();
    send(&mut broker, METHOD, 1, &method((60, 40), &address))?;
    let length = u64::try_from(body.len())?.to_be_bytes();
    let header =
        [&[0, 60, 0, 0][..], &length, &HEADERS_AND_DELIVERY_MODE.to_be_bytes(), &long(table), &[2]];
    send(&mut broker, HEADER, 1, &header.concat())?;
    send(&mut broker, BODY, 1, body)?;
    // The reply to an orderly close proves that the broker has read everything before it.
    send(
        &mut broker,
        METHOD,
        1,
        &method((20, 40), &[&200_u16.to_be_bytes()[..], &short(""), &[0; 4]].concat()),
    )?;
    expect(&mut broker, (20, 41)).map(drop)
}

/// An entry of a header table: a string of any bytes under a name of any bytes.
pub fn entry(name: &[u8], value: &[u8]) -> Vec<u8> {
    let length = u8::try_from(name.len()).unwrap_or(u8::MAX);
    [&[length], name, b"S", &long(value)].concat()
}

fn method((class, id): (u16, u16), arguments: &[u8]) -> Vec<u8> {
    [&class.to_be_bytes()[..], &id.to_be_bytes(), arguments].concat()
}

fn short(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len()).unwrap_or(u8::MAX);
    [&[length], text.as_bytes()].concat()
}

fn long(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    [&length.to_be_bytes(), bytes].concat()
}

fn send(broker: &mut TcpStream, kind: u8, channel: u16, payload: &[u8]) -> anyhow::Result<()> {
    let frame = [&[kind], &channel.to_be_bytes()[..], &long(payload), &[FRAME_END]].concat();
    broker.write_all(&frame).context("write to the broker")
}

/// Reads the next method, which must be this one, and returns its arguments.
fn expect(broker: &mut TcpStream, (class, id): (u16, u16)) -> anyhow::Result<Vec<u8>> {
    let mut head = [0; 7];
    broker.read_exact(&mut head).context("read from the broker")?;
    let length = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
    let mut payload = vec![0; usize::try_from(length)? + 1];
    broker.read_exact(&mut payload)?;
    let arguments = payload.split_off(4.min(payload.len()));
    ensure!(payload == method((class, id), &[]), "expected method {class}.{id}: {payload:?}");
    Ok(arguments)
}
