//! What a forwarder and the machine spend.
