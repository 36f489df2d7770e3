package cluster

import (
	"os"
	"path/filepath"
	"testing"
)

// A refusal names the field that the operator has filled in, under the name that it has in the request.
func TestFieldOf(t *testing.T) {
	for field, want := range map[string]string{
		"":                            "",
		"bootstrap.node.name":         "name",
		"add_node.node.name":          "name",
		"add_node.node.addresses[1]":  "advertise[1]",
		"add_node.node.addresses":     "advertise",
		"add_node.node.public_key":    "",
		"add_node.node.control_port":  "",
		"options.token":               "token",
		"options.remotes":             "remotes",
		"options.advertise":           "advertise",
		"update_node.id":              "node",
		"update_node.role":            "role",
		"remove_node.id":              "node",
		"create_network.subnets[0]":   "subnets[0]",
		"create_network.gateways[1]":  "gateways[1]",
		"create_network.name":         "name",
		"remove_network.id":           "network",
		"add_endpoint.ips[0]":         "ips[0]",
		"add_endpoint.network":        "network",
		"add_endpoint.node":           "",
		"add_endpoint.lease_end":      "",
		"confirm_endpoint.id":         "",
		"confirm_endpoint.generation": "",
		"remove_endpoint.id":          "endpoint",
		"restore.name":                "",
		"options.role":                "role",
		"bootstrap":                   "",
	} {
		if got := fieldOf(field); got != want {
			t.Errorf("%q is named %q, want %q", field, got, want)
		}
	}
}

// What a crash has left of a file that was being written is removed with the next start.
func TestUnfinishedAttachments(t *testing.T) {
	file := filepath.Join(t.TempDir(), "attachments.json")
	for _, f := range []string{file + ".123", file + "x"} {
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := loadAttachments(file); err != nil {
		t.Fatal(err)
	}
	for f, want := range map[string]bool{file + ".123": false, file + "x": true} {
		if _, err := os.Stat(f); (err == nil) != want {
			t.Errorf("%s: %v", f, err)
		}
	}
}
