"""Content codings of an upstream's answer, undone as it comes: gzip and deflate, by pieces of bounded size.

Weir asks for `identity`, but what stands between it and the server may compress all the same, and nobody can bill what
nobody can read. The client gets plain bytes (it asked Weir for none other), each event as soon as its bytes are there.

Invariant: no input, whatever it claims, makes more than `PIECE_BYTES_MAX` at a time; how many pieces are taken is for
the reader to say. One kilobyte can stand for a megabyte.
"""

import zlib

PIECE_BYTES_MAX = 64 * 1024

_GZIP = 16 + zlib.MAX_WBITS
_ZLIB = zlib.MAX_WBITS
_RAW = -zlib.MAX_WBITS


class DecodingError(Exception):
    """The bytes are not what the answer said that they are."""


class Inflater:
    """Compressed bytes in, plain bytes out."""

    __slots__ = ("_has_begun", "_is_gzip", "_stream", "_waiting")

    def __init__(self, *, is_gzip: bool) -> None:
        """Undo gzip (RFC 1952, of one member or several), else deflate: zlib's (RFC 1950), or bare as some send it."""
        self._is_gzip = is_gzip
        self._waiting = b""
        self._stream = zlib.decompressobj(_GZIP) if is_gzip else None
        self._has_begun = False

    @property
    def is_whole(self) -> bool:
        """Whether an answer may end here: at the end of a stream, or before its first byte."""
        is_at_end = self._stream is not None and self._stream.eof and not self._waiting
        return is_at_end or not self._has_begun

    def feed(self, data: bytes) -> None:
        """Take compressed bytes; `read` gives what they hold."""
        self._waiting += data
        self._has_begun = True

    def read(self) -> bytes:
        """Return the next piece, b"" if more has to be fed first. Raises DecodingError."""
        while True:
            stream = self._stream or self._bare_or_not()
            if stream is None:
                return b""
            if stream.eof:
                if not self._waiting:
                    return b""
                if not self._is_gzip:
                    raise DecodingError("bytes behind the end")
                stream = self._stream = zlib.decompressobj(_GZIP)
            try:
                piece = stream.decompress(self._waiting, PIECE_BYTES_MAX)
            except zlib.error as error:
                raise DecodingError(str(error)) from None
            self._waiting = stream.unused_data if stream.eof else stream.unconsumed_tail
            if piece or not self._waiting:
                return piece

    def _bare_or_not(self) -> "zlib._Decompress | None":
        """Tell the two kinds of deflate from each other by zlib's two bytes (RFC 1950 §2.2), once they are there."""
        if len(self._waiting) < 2:
            return None
        first, second = self._waiting[0], self._waiting[1]
        has_head = first & 0x0F == zlib.DEFLATED and (first * 256 + second) % 31 == 0
        self._stream = zlib.decompressobj(_ZLIB if has_head else _RAW)
        return self._stream


def inflater_of(coding: bytes) -> Inflater | None:
    """Return what undoes a `Content-Encoding`, None if it is not known here (br, zstd, several)."""
    name = coding.strip().lower()
    if name in (b"gzip", b"x-gzip"):
        return Inflater(is_gzip=True)
    return Inflater(is_gzip=False) if name == b"deflate" else None
