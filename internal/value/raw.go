package value

import (
	"encoding/json"
	"fmt"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// Raw is a string of any bytes in JSON. A byte that is no UTF-8 is written as a lone surrogate,
// \udc80 to \udcff, as surrogateescape does (PEP 383). Text in UTF-8 is written as usual.
// The bytes 80 to ff of JSON that is no UTF-8 are read as they are.
type Raw string

// escapeOf is what a byte that is no UTF-8 is added to.
const escapeOf = 0xdc00

// MarshalJSON implements json.Marshaler. It fails for no string.
func (r Raw) MarshalJSON() ([]byte, error) {
	out, begun := []byte{'"'}, 0
	text := func(end int) {
		b, _ := json.Marshal(string(r[begun:end])) // never fails for a string
		out = append(out, b[1:len(b)-1]...)
	}
	for i := 0; i < len(r); {
		c, n := utf8.DecodeRuneInString(string(r[i:]))
		if c == utf8.RuneError && n == 1 {
			text(i)
			out = fmt.Appendf(out, `\u%04x`, escapeOf+int(r[i]))
			begun = i + 1
		}
		i += n
	}
	text(len(r))
	return append(out, '"'), nil
}

// UnmarshalJSON implements json.Unmarshaler. It fails for everything but a string.
func (r *Raw) UnmarshalJSON(b []byte) error {
	var whole string
	if err := json.Unmarshal(b, &whole); err != nil || b[0] != '"' {
		return err // null leaves r alone, as it does a string
	}
	b = b[1 : len(b)-1]
	var out []byte
	begun := 0
	text := func(end int) error {
		var s string
		err := json.Unmarshal(fmt.Appendf(nil, `"%s"`, b[begun:end]), &s)
		out = append(out, s...)
		return err
	}
	for i := 0; i < len(b); {
		c, n, is := rawByte(b[i:])
		if is {
			if err := text(i); err != nil {
				return err
			}
			out = append(out, c)
			begun = i + n
		}
		i += n
	}
	err := text(len(b))
	*r = Raw(out)
	return err
}

// rawByte returns the length of the first character in the text of a JSON string, and the byte that
// it stands for if it is no character of UTF-8.
func rawByte(b []byte) (c byte, length int, is bool) {
	if b[0] != '\\' {
		r, n := utf8.DecodeRune(b)
		return b[0], n, r == utf8.RuneError && n == 1
	}
	code := func(b []byte) (rune, bool) {
		if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
			return 0, false
		}
		n, err := strconv.ParseUint(string(b[2:6]), 16, 16)
		return rune(n), err == nil
	}
	high, ok := code(b)
	if !ok {
		return 0, min(2, len(b)), false
	}
	low, ok := code(b[6:])
	if ok && utf16.DecodeRune(high, low) != utf8.RuneError {
		return 0, 12, false
	}
	return byte(high), 6, high >= escapeOf+0x80 && high <= escapeOf+0xff
}
