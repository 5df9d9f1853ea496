//! The whole agent on nodes made of network namespaces: the real program, the real plugin, kernels at both ends.
//!
//! Each test makes its own nodes, pods and directory, named by process and number, and takes them away again whatever
//! happens. Without root nothing of this can be made: then all tests are reported as ignored, with the reason.
//! Tests run one after another unless `--test-threads` says otherwise, since some measure time.

mod agent_process;
mod announcing;
mod api_server;
mod bandwidth;
mod boundary;
mod boundary_table;
mod capabilities;
mod chain;
mod cluster;
mod container;
mod directory;
mod egress;
mod faults;
mod flannel;
mod health;
mod host;
mod idle;
mod installation;
mod kept;
mod kernel_peer;
mod kube_proxy;
mod late_fragments;
mod losses;
mod metrics;
mod networks;
mod node_state;
mod objects;
mod ping;
mod plugging;
mod pod;
mod policies;
mod reachability;
mod receipts;
mod restart;
#[path = "../../../engine/tests/support/root_tests.rs"]
mod root_tests;
mod runtimes;
mod services;
mod standalone;
mod subnets;
mod takeover;
mod tenants;
mod traffic;
mod uplinks;
mod verbs;
mod veth;
mod workers;

use std::process::ExitCode;

use root_tests::RootTest;

/// A test by its name.
type Test = (&'static str, fn());

const TESTS: &[Test] = &[
    ("connections_of_kube_proxy_live_on", kube_proxy::connections_of_kube_proxy_live_on),
    ("receipts_say_what_is_in_force_since_when", receipts::receipts_say_what_is_in_force_since_when),
    ("connections_outlive_the_agent", kept::connections_outlive_the_agent),
    ("check_finds_what_was_changed_behind_its_back", verbs::check_finds_what_was_changed_behind_its_back),
    ("what_the_runtime_does_not_know_is_collected", verbs::what_the_runtime_does_not_know_is_collected),
    ("status_says_whether_a_pod_could_be_plugged_in", verbs::status_says_whether_a_pod_could_be_plugged_in),
    ("wishes_for_addresses_are_met_or_refused", verbs::wishes_for_addresses_are_met_or_refused),
    ("ports_of_the_host_lead_where_the_runtime_says", capabilities::ports_of_the_host_lead_where_the_runtime_says),
    ("a_port_of_the_host_has_one_pod", capabilities::a_port_of_the_host_has_one_pod),
    ("every_version_gets_results_of_its_shape", chain::every_version_gets_results_of_its_shape),
    ("plugins_before_and_behind_are_let_be", chain::plugins_before_and_behind_are_let_be),
    ("pods_keep_to_their_bandwidth", bandwidth::pods_keep_to_their_bandwidth),
    ("two_workers_keep_to_one_bandwidth", bandwidth::two_workers_keep_to_one_bandwidth),
    ("a_bandwidth_that_cannot_be_is_refused", bandwidth::a_bandwidth_that_cannot_be_is_refused),
    ("nothing_is_lost_whatever_goes_wrong", faults::nothing_is_lost_whatever_goes_wrong),
    ("nothing_is_lost_at_any_step", faults::nothing_is_lost_at_any_step),
    ("two_agents_connect_their_pods", reachability::two_agents_connect_their_pods),
    ("tunnels_run_over_ipv6", reachability::tunnels_run_over_ipv6),
    ("workers_drive_the_card_themselves", reachability::workers_drive_the_card_themselves),
    ("nodes_of_one_subnet_need_no_tunnel", reachability::nodes_of_one_subnet_need_no_tunnel),
    (
        "across_subnets_there_is_a_tunnel_and_inside_there_is_none",
        subnets::across_subnets_there_is_a_tunnel_and_inside_there_is_none,
    ),
    ("the_program_shows_and_traces", reachability::the_program_shows_and_traces),
    ("a_kernel_in_flannels_layout_is_a_peer", flannel::a_kernel_in_flannels_layout_is_a_peer),
    ("the_host_reaches_pods_and_pods_reach_it", host::the_host_reaches_pods_and_pods_reach_it),
    ("the_hosts_port_outlives_its_agent", host::the_hosts_port_outlives_its_agent),
    ("the_hosts_own_traffic_goes_on_beside_pods", boundary::the_hosts_own_traffic_goes_on_beside_pods),
    ("pods_reach_the_outside", egress::pods_reach_the_outside),
    ("an_exempt_network_sees_pods_by_their_own_addresses", egress::an_exempt_network_sees_pods_by_their_own_addresses),
    ("metrics_say_what_show_says", metrics::metrics_say_what_show_says),
    (
        "load_balancers_are_told_of_local_endpoints_and_of_the_node",
        health::load_balancers_are_told_of_local_endpoints_and_of_the_node,
    ),
    ("the_host_reaches_services", services::the_host_reaches_services),
    ("clients_outside_reach_services", services::clients_outside_reach_services),
    ("clients_outside_reach_services_beside_udp_sockets", services::clients_outside_reach_services_beside_udp_sockets),
    (
        "one_node_announces_a_load_balancer_and_another_takes_over",
        announcing::one_node_announces_a_load_balancer_and_another_takes_over,
    ),
    ("pods_stand_on_the_nodes_wire", networks::pods_stand_on_the_nodes_wire),
    ("tenants_share_addresses_and_never_meet", tenants::tenants_share_addresses_and_never_meet),
    ("a_pod_has_interfaces_in_several_networks", tenants::a_pod_has_interfaces_in_several_networks),
    ("a_pod_may_have_a_veth", veth::a_pod_may_have_a_veth),
    ("units_of_a_veth_stay_whole", veth::units_of_a_veth_stay_whole),
    ("a_network_that_is_not_there_is_named", networks::a_network_that_is_not_there_is_named),
    (
        "the_hosts_own_traffic_goes_on_beside_packet_sockets",
        boundary::the_hosts_own_traffic_goes_on_beside_packet_sockets,
    ),
    ("packet_sockets_serve_what_af_xdp_cannot", uplinks::packet_sockets_serve_what_af_xdp_cannot),
    ("an_agent_chooses_how_an_uplink_is_served", uplinks::an_agent_chooses_how_an_uplink_is_served),
    ("udp_sockets_carry_the_tunnels", uplinks::udp_sockets_carry_the_tunnels),
    ("an_interface_on_top_of_others_is_an_uplink", uplinks::an_interface_on_top_of_others_is_an_uplink),
    ("a_second_uplink_takes_over", uplinks::a_second_uplink_takes_over),
    ("a_node_with_another_address_is_followed", uplinks::a_node_with_another_address_is_followed),
    ("an_uplinks_mtu_is_followed", uplinks::an_uplinks_mtu_is_followed),
    ("a_missing_right_is_named", uplinks::a_missing_right_is_named),
    ("the_runtime_is_told_when_pods_can_be_plugged_in", installation::the_runtime_is_told_when_pods_can_be_plugged_in),
    ("a_full_or_read_only_directory_keeps_what_it_has", installation::a_full_or_read_only_directory_keeps_what_it_has),
    ("an_uninstalled_node_is_as_before", installation::an_uninstalled_node_is_as_before),
    (
        "pods_end_after_an_uninstall_that_kept_the_plugin",
        installation::pods_end_after_an_uninstall_that_kept_the_plugin,
    ),
    ("an_agent_needs_the_rights_of_its_container", container::an_agent_needs_the_rights_of_its_container),
    ("each_right_of_the_container_is_needed", container::each_right_of_the_container_is_needed),
    ("pods_survive_a_killed_agent", restart::pods_survive_a_killed_agent),
    ("what_streams_lose_while_agents_come_and_go", losses::what_streams_lose_while_agents_come_and_go),
    ("a_pod_that_cannot_be_taken_up_is_in_nobodys_way", restart::a_pod_that_cannot_be_taken_up_is_in_nobodys_way),
    ("an_attachment_of_a_lost_pod_is_released", restart::an_attachment_of_a_lost_pod_is_released),
    ("without_an_agent_add_asks_to_try_again", plugging::without_an_agent_add_asks_to_try_again),
    ("a_foreign_interface_is_left_alone", plugging::a_foreign_interface_is_left_alone),
    ("many_pods_are_plugged_at_once", plugging::many_pods_are_plugged_at_once),
    ("an_address_is_used_again", plugging::an_address_is_used_again),
    ("a_broken_object_is_named_and_harms_nothing", objects::a_broken_object_is_named_and_harms_nothing),
    ("new_objects_apply_at_once", objects::new_objects_apply_at_once),
    ("a_pod_is_closed_from_its_first_packet_on", policies::a_pod_is_closed_from_its_first_packet_on),
    ("live_flows_are_cut_or_finish", policies::live_flows_are_cut_or_finish),
    (
        "the_five_minutes_of_the_standalone_switch_are_as_written",
        standalone::the_five_minutes_of_the_standalone_switch_are_as_written,
    ),
    ("podman_connects_its_containers", runtimes::podman_connects_its_containers),
    ("containerd_connects_its_pods", runtimes::containerd_connects_its_pods),
    ("podman_and_containerd_share_a_node", runtimes::podman_and_containerd_share_a_node),
    ("runtimes_outlive_the_agent", runtimes::runtimes_outlive_the_agent),
    ("nothing_of_a_runtime_outlives_a_failed_test", runtimes::nothing_of_a_runtime_outlives_a_failed_test),
    ("events_tell_what_an_operator_must_see", api_server::events_tell_what_an_operator_must_see),
    ("the_api_server_may_be_away", api_server::the_api_server_may_be_away),
    (
        "an_agent_is_replaced_under_load_and_nothing_is_lost",
        takeover::an_agent_is_replaced_under_load_and_nothing_is_lost,
    ),
    ("a_takeover_that_fails_leaves_the_running_agent", takeover::a_takeover_that_fails_leaves_the_running_agent),
    ("queues_of_af_xdp_are_not_handed_over", takeover::queues_of_af_xdp_are_not_handed_over),
    ("an_idle_agent_sleeps", idle::an_idle_agent_sleeps),
    ("two_workers_share_an_uplink", workers::two_workers_share_an_uplink),
];

fn main() -> ExitCode {
    if let Some(code) = standalone::as_ping().or_else(runtimes::as_isolated).or_else(takeover::as_successor) {
        return code;
    }
    let listed = |(name, run): Test| RootTest { name, run, on_demand: false };
    root_tests::run(TESTS.iter().copied().map(listed).collect(), Some(1))
}
