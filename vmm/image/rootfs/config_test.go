package rootfs

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// TestConfig reads configurations as builders write them, good and bad.
func TestConfig(t *testing.T) {
	for config, want := range map[string]string{
		`{}`:                               `{"args":null}`,
		`null`:                             `{"args":null}`,
		`{"Entrypoint":null,"Cmd":[]}`:     `{"args":null}`,
		`{"Entrypoint":"/bin/web -x"}`:     `{"args":["/bin/web -x"]}`,
		`{"Entrypoint":["a"],"Cmd":"b"}`:   `{"args":["a","b"]}`,
		`{"entrypoint":["a"],"CMD":["b"]}`: `{"args":["a","b"]}`,
		`{"Entrypoint":[""],"Cmd":["b"]}`:  `{"args":["b"]}`,
		`{"Cmd":["a"],"ArgsEscaped":true,"Nonsense":{"x":[1]},"Healthcheck":"odd","Labels":7}`: `{"args":["a"]}`,
		// All that nothing is done with, of any type.
		`{"Cmd":["a"],"Memory":"x","MemorySwap":-1,"CpuShares":[],"StopTimeout":"x","OnBuild":"x","Shell":7,"Hostname":[],"Domainname":1,"MacAddress":2,"NetworkDisabled":"x","Tty":1,"OpenStdin":"x","StdinOnce":2,"AttachStdin":[],"AttachStdout":{},"AttachStderr":3,"Image":[]}`: `{"args":["a"]}`,
		`{"Cmd":["a"],"Env":["PATH=/bin","NONE","=x","E=","A=b=c"]}`: `{"args":["a"],"env":["PATH=/bin","E=","A=b=c"]}`,
		`{"Cmd":["a"],"Env":null,"User":"1000:web","Volumes":null}`:  `{"args":["a"],"user":"1000:web"}`,
		`{"Cmd":["a"],"Volumes":{"/srv/b/":{},"a":null,"../c":{}}}`:  `{"args":["a"],"volumes":["/a","/c","/srv/b"]}`,
		`{"Cmd":["a"],"Volumes":{"/a\u0000":{}}}`:                    `NUL byte`,
		`{"Cmd":["a"],"Volumes":["x"]}`:                              `its configuration cannot be read`,
		`{"Cmd":["a"],"WorkingDir":"srv/app/"}`:                      `{"args":["a"],"dir":"/srv/app"}`,
		`{"Cmd":["a"],"WorkingDir":"../../x"}`:                       `{"args":["a"],"dir":"/x"}`,
		`{"Cmd":["a"],"StopSignal":"SIGRTMIN+3"}`:                    `{"args":["a"],"stop_signal":"37"}`,
		`{"Cmd":["a"],"StopSignal":"quit"}`:                          `{"args":["a"],"stop_signal":"3"}`,
		`{"Cmd":["a"],"StopSignal":"9"}`:                             `{"args":["a"],"stop_signal":"9"}`,
		`{"Cmd":["a"],"StopSignal":""}`:                              `{"args":["a"]}`,
		`{"Cmd":["a"],"StopSignal":"SIGNOPE"}`:                       `the StopSignal of its configuration: "SIGNOPE" is not a signal`,
		`{"Cmd":["a"],"StopSignal":"0"}`:                             `"0" is not a signal`,
		`{"Cmd":["a"],"StopSignal":15}`:                              `its configuration cannot be read`,
		`{"Cmd":[""]}`:                                               `begins with an empty word`,
		`{"Cmd":["a","b\u0000c"]}`:                                   `NUL byte`,
		`{"Cmd":["a"],"Env":["A=\u0000"]}`:                           `NUL byte`,
		`{"Cmd":["a"],"User":"\u0000"}`:                              `NUL byte`,
		`{"Cmd":[1]}`:                                                `its configuration cannot be read`,
		`{"Entrypoint":{"a":1}}`:                                     `its configuration cannot be read`,
		`[]`:                                                         `its configuration cannot be read`,
	} {
		got := ""
		c, err := ParseConfig([]byte(`{"created":"","author":[],"history":7,"os.version":1,"os.features":"x","config":` + config + `}`))
		if err == nil {
			p, perr := (&Image{Config: c}).Program()
			if err = perr; err == nil {
				b, _ := json.Marshal(p)
				got = string(b)
			}
		}
		if err != nil {
			got = err.Error()
		}
		if got != want && (err == nil || !strings.Contains(got, want)) {
			t.Errorf("%s is %s, want %s", config, got, want)
		}
	}
}

// TestExposed shows the ports of an image, in order and bounded, and nothing else.
func TestExposed(t *testing.T) {
	var many []string
	for n := range 5000 {
		many = append(many, fmt.Sprintf(`"%d/udp":{}`, n+1))
	}
	for ports, want := range map[string][]string{
		`null`: nil,
		`{}`:   nil,
		`{"8080/tcp":{},"53/udp":{},"80":{},"53/tcp":null,"080/TCP":{},"9/SCTP":{}}`: {
			"9/sctp", "53/tcp", "53/udp", "80/tcp", "8080/tcp"},
		`{"$PORT/tcp":{},"0/tcp":{},"65536/tcp":{},"1-5/tcp":{},"7/x":{},"\u001b[2J/tcp":{}}`: nil,
	} {
		c, err := ParseConfig([]byte(`{"config":{"ExposedPorts":` + ports + `}}`))
		if err != nil {
			t.Fatal(err)
		}
		if got := (&Image{Config: c}).Exposed(); !slices.Equal(got, want) {
			t.Errorf("%s is %q, want %q", ports, got, want)
		}
	}
	c, err := ParseConfig([]byte(`{"config":{"ExposedPorts":{` + strings.Join(many, ",") + `}}}`))
	if err != nil {
		t.Fatal(err)
	}
	if got := (&Image{Config: c}).Exposed(); len(got) != maxExposed {
		t.Errorf("%d ports are shown", len(got))
	}
}

// TestHealthcheck keeps what docker would run, and nothing else.
func TestHealthcheck(t *testing.T) {
	for check, want := range map[string]string{
		`null`: `null`, `{}`: `null`, `"odd"`: `null`, `{"Test":["NONE"]}`: `null`, `{"Test":[]}`: `null`,
		`{"Test":["CMD"]}`: `null`, `{"Test":["CMD","a"],"Interval":"soon"}`: `null`,
		`{"Test":["CMD","` + strings.Repeat("a", maxHealthcheck) + `"]}`:                           `null`,
		`{"Test":["CMD","a","b"]}`:                                                                 `{"test":["CMD","a","b"]}`,
		`{"Test":["CMD-SHELL","a||b"],"Interval":30000000000,"Timeout":500000000}`:                 `{"test":["CMD-SHELL","a||b"],"interval":30,"timeout":0.5}`,
		`{"Test":["CMD","a"],"StartPeriod":1000000000,"Retries":3,"Timeout":-1,"StartInterval":5}`: `{"test":["CMD","a"],"start_period":1,"retries":3}`,
	} {
		c, err := ParseConfig([]byte(`{"config":{"Healthcheck":` + check + `}}`))
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := json.Marshal((&Image{Config: c}).Healthcheck()); string(got) != want {
			t.Errorf("%.100s is %s, want %s", check, got, want)
		}
	}
}
