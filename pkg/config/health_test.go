package config

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const gateHead = "apiVersion: osctl.kapernikov.com/v1\nkind: Gate\n"

func TestLoadHealth(t *testing.T) {
	name := file(t, gateHead+`deadline: 2m
network: wanted
units: {required: [a.service, "b@1.mount"], tolerated: ["apt-*.service"]}
scripts: {timeout: 90s}
probes:
  - {name: api, http: "http://127.0.0.1:8080/health", status: 204, matches: "^ok", within: 1m}
  - {name: db, tcp: "[::1]:5432", level: wanted, timeout: 3s}
  - {name: disk, exec: [/usr/bin/test, -d, /data/x]}
  - name: shell
    shell: |
      df /data
`)
	f, err := LoadHealth(filepath.Join(t.TempDir(), "none"), name)
	if err != nil {
		t.Fatal(err)
	}
	if f.Path != name || f.Deadline != Duration(2*time.Minute) || f.Soak != Duration(30*time.Second) || f.Retry != Duration(5*time.Second) || f.Network != "wanted" ||
		f.Units.Required[1] != "b@1.mount" || f.Units.Tolerated[0] != "apt-*.service" || f.Scripts.Timeout != Duration(90*time.Second) || len(f.Scripts.Folders) != 2 {
		t.Errorf("LoadHealth = %+v", f.Health)
	}
	p := f.Probes
	if len(p) != 4 || p[0].Status != 204 || p[0].Matches != "^ok" || p[0].Within != Duration(time.Minute) || p[1].TCP != "[::1]:5432" || p[1].Level != "wanted" ||
		p[1].Timeout != Duration(3*time.Second) || len(p[2].Exec) != 3 || p[3].Shell != "df /data\n" {
		t.Errorf("probes %+v", p)
	}
	if f, err := LoadHealth(filepath.Join(t.TempDir(), "none")); err != nil || f.Path != "" || f.Deadline != Duration(5*time.Minute) || f.Scripts.Folders[1] != "/etc/greenboot" {
		t.Errorf("without a file: %+v, %v", f, err)
	}
	if f, err := LoadHealth(file(t, gateHead+"deadline: 40s\n")); err != nil || f.Scripts.Timeout != Duration(40*time.Second) {
		t.Errorf("a short deadline: %+v, %v", f, err)
	}
	// What is read of a file that is wrong counts for nothing.
	if f, err := LoadHealth(file(t, gateHead+"deadline: 1m\nunits: {required: [x]}\n")); !errors.Is(err, ErrInvalid) || f.Deadline != Duration(5*time.Minute) || f.Units.Required != nil {
		t.Errorf("a wrong file: %+v, %v", f, err)
	}
	if _, err := LoadHealth(t.TempDir()); err == nil {
		t.Error("a directory was read")
	}
}

// probe is a file with one probe in it; its first key is at 4:5.
func probe(keys string) string { return gateHead + "probes:\n  - " + keys + "\n" }

func TestLoadHealthRefuses(t *testing.T) {
	for want, text := range map[string]string{
		`kind "Config", expected are "osctl.kapernikov.com/v1" and "Gate"`:         head,
		`:3:1: unknown key "dedline"; allowed here: apiVersion, deadline, kind,`:   gateHead + "dedline: 5m\n",
		`:3:11: deadline: "soon" is no duration; write for example 30s`:            gateHead + "deadline: soon\n",
		`:3:11: deadline: expected is a duration`:                                  gateHead + "deadline: [5m]\n",
		`:3:10: network: "maybe"; allowed are required, wanted and ignore`:         gateHead + "network: maybe\n",
		`:3:7: soak: 5m0s; it has to be less than the deadline, 5m0s`:              gateHead + "soak: 5m\n",
		`:3:20: scripts.timeout: 6m0s; it may not be more than the deadline, 5m0s`: gateHead + "scripts: {timeout: 6m}\n",
		`:3:21: scripts.folders[0]: "a"; expected is an absolute path`:             gateHead + "scripts: {folders: [a]}\n",
		`:3:8: units: expected is a mapping; allowed here: required, tolerated`:    gateHead + "units: [a.service]\n",
		`:3:20: units.required[0]: "ssh" is no full name of a unit`:                gateHead + "units: {required: [ssh]}\n",
		`:3:31: units.required[1]: "/x.y"`:                                         gateHead + "units: {required: [a.service, /x.y]}\n",
		`units.tolerated[0]: "[a" is no pattern; write for example apt-*.service`:  gateHead + "units: {tolerated: [\"[a\"]}\n",
		`:4:8: probes[0].name: ""; expected is a name`:                             probe("tcp: a:1"),
		`:4:11: probes[0].name: "a\nb"`:                                            probe("name: \"a\\nb\"\n    tcp: a:1"),
		`probes[0]: probe a has 0 of exec, shell, http and tcp; expected is one`:   probe("name: a"),
		`probes[0]: probe a has 2 of exec, shell, http and tcp; expected is one`:   probe("name: a\n    tcp: a:1\n    shell: x"),
		`probes[0]: probe a has 2 of exec`:                                         probe("name: a\n    tcp: a:1\n    exec:"),
		`:5:12: probes[0].level: "maybe"; allowed are required and wanted`:         probe("name: a\n    level: maybe\n    tcp: a:1"),
		`:5:12: probes[0].level: ""`:                                               probe("name: a\n    level: \"\"\n    tcp: a:1"),
		`:5:14: probes[0].timeout: 6m0s; it may not be more than`:                  probe("name: a\n    timeout: 6m\n    tcp: a:1"),
		`:5:13: probes[0].within: 6m0s`:                                            probe("name: a\n    within: 6m\n    tcp: a:1"),
		`:5:11: probes[0].exec: it names no program`:                               probe("name: a\n    exec: []"),
		`:5:11: probes[0].exec: expected is a list`:                                probe("name: a\n    exec: /bin/true"),
		`:5:12: probes[0].shell: it is empty`:                                      probe("name: a\n    shell: \" \""),
		`:5:10: probes[0].tcp: "a" is no address; write for example`:               probe("name: a\n    tcp: a"),
		`probes[0].tcp: ":80" is no address`:                                       probe("name: a\n    tcp: \":80\""),
		`probes[0].tcp: "a:http" is no address`:                                    probe("name: a\n    tcp: a:http"),
		`:5:11: probes[0].http: "localhost" is no URL`:                             probe("name: a\n    http: localhost"),
		`probes[0].http: "ftp://a/" is no URL`:                                     probe("name: a\n    http: ftp://a/"),
		`probes[0].http: it has a name or a password in it`:                        probe("name: a\n    http: http://u:p@a/"),
		`:6:13: probes[0].status: 0; allowed are 100 to 599`:                       probe("name: a\n    http: http://a/\n    status: 0"),
		`:6:13: probes[0].status: expected is a whole number`:                      probe("name: a\n    http: http://a/\n    status: ok"),
		`:6:13: probes[0].status: it is for probes with http only`:                 probe("name: a\n    tcp: a:1\n    status: 200"),
		`:6:15: probes[0].contains: it is empty`:                                   probe("name: a\n    http: http://a/\n    contains: \"\""),
		`:6:14: probes[0].matches: error parsing regexp`:                           probe("name: a\n    http: http://a/\n    matches: \"(\""),
		`probes[0].matches: it has contains already; expected is one of them`:      probe("name: a\n    http: http://a/\n    contains: x\n    matches: x"),
		`:4:27: unknown key "tpc"; allowed here: contains, exec, http, level,`:     gateHead + "probes:\n  - {name: a, tcp: \"a:1\", tpc: b}\n",
		`:5:12: probes[1].name: "a" is the name of another probe as well`:          gateHead + "probes:\n  - {name: a, tcp: \"a:1\"}\n  - {name: a, tcp: \"a:2\"}\n",
	} {
		if _, err := parseHealth("/etc/osctl/health.yaml", []byte(text)); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "/etc/osctl/health.yaml") {
			t.Errorf("error = %v\nwant ErrInvalid with %q and the file", err, want)
		}
	}
}

// The image's own files are what osctl reads.
func TestImageFiles(t *testing.T) {
	const dir = "../../images/rootfs/usr/lib/osctl/"
	if _, err := os.Stat(dir + "osctl.yaml"); err != nil {
		t.Fatal(err)
	}
	if c, err := Load(dir + "osctl.yaml"); err != nil || c.Product != "reference" {
		t.Errorf("osctl.yaml: %v", err)
	}
	f, err := LoadHealth(dir + "health.yaml")
	if err != nil || f.Path == "" || !slices.Contains(f.Units.Required, "containerd.service") {
		t.Errorf("health.yaml: %+v, %v", f.Health, err)
	}
}

func FuzzHealth(f *testing.F) {
	f.Add([]byte(gateHead + "deadline: 2m\nunits: {required: [a.service], tolerated: [\"a*\"]}\nscripts: {folders: [/a]}\n"))
	f.Add([]byte(gateHead + "probes:\n  - {name: a, http: \"http://a/\", status: 200, matches: x}\n  - {name: b, tcp: \"b:1\"}\n  - {name: c, exec: [x]}\n"))
	f.Add([]byte(probe("name: a\n    shell: |\n      x\n    level:\n    within:")))
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := parseHealth("f", data)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("error of another class: %v", err)
			}
			return
		}
		if h.Deadline <= 0 || h.Soak <= 0 || h.Soak >= h.Deadline || h.Retry <= 0 || h.Scripts.Timeout <= 0 {
			t.Errorf("times: %+v", h.Health)
		}
		for _, p := range h.Probes {
			if p.Name == "" || len(p.Exec) == 0 && p.Shell == "" && p.HTTP == "" && p.TCP == "" {
				t.Errorf("a probe that asks nothing: %+v", p)
			}
		}
	})
}
