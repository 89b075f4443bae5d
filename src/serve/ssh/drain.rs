//! Takes all that a client sends on a channel, at once: see [`super::flow`] for why nothing may wait here.

use russh::{ChannelMsg, ChannelReadHalf};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{super::relay::Control, flow::Inlet};

/// Puts data into `inlet` and what is said beside it into `controls`, and tells by `gone` when the client has left. With `interrupts`,
/// Ctrl-C and Ctrl-D end the command: it has a terminal, where they are only bytes, and does not read.
pub async fn drain(
    mut from: ChannelReadHalf,
    inlet: Inlet,
    controls: mpsc::Sender<Control>,
    gone: CancellationToken,
    interrupts: bool,
) {
    let mut inlet = Some(inlet);
    // Ends once the other side closes, or the connection does.
    while let Some(message) = from.wait().await {
        let control = match message {
            ChannelMsg::Data { data } => {
                if interrupts && data.iter().any(|byte| matches!(byte, 3 | 4)) {
                    gone.cancel();
                } else if let Some(inlet) = inlet.as_ref().filter(|_| !data.is_empty()) {
                    inlet.put(data);
                }
                continue;
            }
            ChannelMsg::Eof => {
                inlet = None;
                continue;
            }
            ChannelMsg::Close => break,
            ChannelMsg::WindowChange { col_width, row_height, pix_width, pix_height } => {
                Control::Size([col_width, row_height, pix_width, pix_height])
            }
            ChannelMsg::Signal { signal } => Control::Signal(signal),
            _ => continue,
        };
        // Who sends more of these than the guest takes does without the rest.
        drop(controls.try_send(control));
    }
    gone.cancel();
}
