package main

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"banger/vmm/guest"
	"banger/vmm/guest/sftp"
)

const red = "\x1b[31mred\x1b[0m\r\n\x07"

// handler answers honestly what the mode leaves alone.
//
//	silent   never answers
//	drip     answers a byte a second
//	endless  1 GB
//	nested   JSON, a million levels deep
//	broken   JSON that ends in the middle
//	overflow numbers that fit no type
//	curse    a refusal in escape sequences
//	numbers  negative and huge numbers that fit
//	many     100,000 listeners
//	text     listeners with control characters
//	elsewhere listeners that claim to be bound to other hosts
//	servers  those of serveHTTP
func handler(m *modes, g *agent) http.Handler {
	honest := guest.Handler(g, map[string]guest.StreamHandler{sftp.Stream: serveFiles})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mode, changed := m.watch()
		if r.Method != http.MethodGet {
			honest.ServeHTTP(w, r)
			return
		}
		listeners := r.URL.Path == "/listeners"
		switch mode {
		case "silent":
			select {
			case <-r.Context().Done():
			case <-changed:
			}
		case "drip":
			for m.now() == mode {
				if _, err := io.WriteString(w, "["); err != nil {
					return
				}
				w.(http.Flusher).Flush()
				select {
				case <-time.After(time.Second):
				case <-changed:
				}
			}
		case "endless":
			row := strings.Repeat(`{"protocol":"tcp","port":1},`, 2048)
			for n := 0; n < 1<<30 && m.now() == mode; n += len(row) {
				if _, err := io.WriteString(w, row); err != nil {
					return
				}
			}
		case "nested":
			io.WriteString(w, strings.Repeat("[", 1e6)+strings.Repeat("]", 1e6))
		case "broken":
			io.WriteString(w, `[{"protocol":"tcp","port":80,"process":"a`)
		case "overflow":
			if listeners {
				io.WriteString(w, `[{"protocol":"tcp","port":99999999999999999999}]`)
			} else {
				io.WriteString(w,
					`{"load1":1e999,"uptime":-1e999,"mem_total_bytes":99999999999999999999}`)
			}
		case "curse":
			http.Error(w, strings.Repeat(red, 100), http.StatusTeapot)
		case "numbers":
			if listeners {
				io.WriteString(w, numbers)
			} else {
				io.WriteString(w, hugeStats)
			}
		case "many":
			if !listeners {
				honest.ServeHTTP(w, r)
				return
			}
			io.WriteString(w, many)
		case "text", "elsewhere", "servers":
			if !listeners {
				honest.ServeHTTP(w, r)
				return
			}
			rows := map[string]string{"text": text, "elsewhere": elsewhere(g), "servers": servers}
			io.WriteString(w, rows[mode])
		default:
			honest.ServeHTTP(w, r)
		}
	})
}

var many = func() string {
	rows := make([]string, 100_000)
	for i := range rows {
		rows[i] = fmt.Sprintf(`{"protocol":"tcp","port":%d}`, 1024+i%60000)
	}
	return "[" + strings.Join(rows, ",") + "]"
}()

const hugeStats = `{"load1":1e308,"uptime":1e308,"procs":-1,
"mem_total_bytes":9223372036854775807,"mem_available_bytes":-9223372036854775808,
"disk_used_bytes":-1,"disk_total_bytes":9223372036854775807}`

// numbers has two valid rows.
const numbers = `[
{"protocol":"tcp","port":-1,"pid":1}, {"protocol":"tcp","port":0,"pid":1},
{"protocol":"tcp","port":65536,"pid":1}, {"protocol":"tcp","port":9223372036854775807,"pid":1},
{"protocol":"tcp","port":-9223372036854775808,"pid":1},
{"protocol":"udp","port":1,"pid":-9223372036854775808,"process":"negative"},
{"protocol":"udp","port":65535,"pid":9223372036854775807,"process":"huge"}]`

// text has four rows, the last one of a command line of 75,000 bytes.
var text = `[
{"protocol":"udp","port":1,"process":"a\nudp 9 x",
"command":"\u001b[2J\u001b[31mred\r\nudp 8 y\u0007"},
{"protocol":"udp","port":2,"process":"\u0000nul\t\u007f",
"command":"\u202eoverride\u2028line\u0085next"},
{"protocol":"udp","port":3,"process":"` + "\xff\xfe\xc3" + `","command":"\\x1b\ud800"},
{"protocol":"udp","port":4,"process":"` + strings.Repeat(`\u001b`, 5000) + `",
"command":"` + strings.Repeat(`\u001b]0;t\u0007`, 12500) + `","address":"\u001b[1m\n"}]`

// elsewhere returns a row for each address, with ports from elsewherePort on. The guest listens at
// the first one only.
func elsewhere(g *agent) string {
	gateway := g.gateway.Load().String()
	var rows []string
	for i, address := range []string{gateway, "127.0.0.1", "::1", "8.8.8.8", "localhost",
		gateway + ":80/", "[::ffff:127.0.0.1]", ""} {
		const row = `{"protocol":"tcp","port":%d,"address":%q,"pid":%d,"process":"elsewhere"}`
		rows = append(rows, fmt.Sprintf(row, elsewherePort+i, address, i+1))
	}
	return "[" + strings.Join(rows, ",") + "]"
}
